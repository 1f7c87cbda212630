"""Which architectures and weights there are, by name. No torch in this file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from convstem.errors import RegistryError, UnknownModelError
from convstem.registry.records import ElsewhereSpec, ModelSpec, WeightsSpec
from convstem.registry.tables import (
    data_dir,
    read_rows,
)

PYRAMID = "_pyramid"
"""End of the further timm names of an architecture whose ``features_only=True`` is the feature pyramid."""


@cache
def models() -> Mapping[str, ModelSpec]:
    """Return every architecture by timm name, in registry order.

    Raises:
        RegistryError: a bad row, or a torchvision name given twice.
    """
    path = data_dir("registry") / "architectures.toml"
    specs = read_rows(path, ModelSpec)
    check_torchvision_names(specs, path.name)
    return specs


def check_torchvision_names(specs: Mapping[str, ModelSpec], file: str) -> None:
    """Raise ``RegistryError`` if two architectures claim one torchvision name."""
    owners: dict[str, str] = {}
    for spec in specs.values():
        if spec.torchvision is None:
            continue
        other = owners.setdefault(spec.torchvision, spec.name)
        if other != spec.name:
            raise RegistryError(f"{file}: [{spec.name}]: torchvision name {spec.torchvision!r} is taken by [{other}]")


@cache
def weights() -> Mapping[str, WeightsSpec]:
    """Return every weights entry by ``architecture.tag``, in registry order (an architecture's first is its default).

    Raises:
        RegistryError: a bad row, or an entry for an architecture that does not exist.
    """
    entries: dict[str, WeightsSpec] = {}
    for file in ("weights.toml", "timm_weights.json"):
        for entry in read_rows(data_dir("registry") / file, WeightsSpec).values():
            if entry.architecture not in models():
                raise RegistryError(f"{file}: [{entry.name}]: {unknown_name(entry.architecture)}")
            if entry.name in entries:
                raise RegistryError(f"{file}: [{entry.name}]: this name is taken by another file")
            entries[entry.name] = entry
    return entries


def weights_of(architecture: str) -> list[WeightsSpec]:
    """Return the weights entries of one architecture, its default first."""
    return _weights_by_architecture().get(architecture, [])


@cache
def _weights_by_architecture() -> Mapping[str, list[WeightsSpec]]:
    groups: dict[str, list[WeightsSpec]] = {}
    for entry in weights().values():
        groups.setdefault(entry.architecture, []).append(entry)
    return groups


@cache
def elsewhere() -> Mapping[str, ElsewhereSpec]:
    """Return the weights that other projects publish, by ``architecture.tag``; they are no pretrained tags.

    Raises:
        RegistryError: a bad row, or an entry for an architecture that does not exist.
    """
    file = "elsewhere.toml"
    entries = read_rows(data_dir("registry") / file, ElsewhereSpec)
    for entry in entries.values():
        if entry.architecture not in models():
            raise RegistryError(f"{file}: [{entry.name}]: {unknown_name(entry.architecture)}")
    return entries


def torchvision_names() -> dict[str, str]:
    """Return torchvision name -> timm name."""
    return {spec.torchvision: spec.name for spec in models().values() if spec.torchvision}


def find(name: str) -> ModelSpec:
    """Return the architecture with this timm or torchvision name (``_pyramid`` and a tag after a dot are ignored).

    Raises:
        KeyError: no such name; the message lists the nearest ones.
    """
    base = name.split(".", 1)[0].removesuffix(PYRAMID)
    spec = models().get(torchvision_names().get(base.lower(), base))
    if spec is None:
        raise UnknownModelError(unknown_name(name))
    return spec


def unknown_name(name: str) -> str:
    """Return the sentence that answers an unknown model name: the nearest names, sorted."""
    import difflib  # only when a name is wrong

    known = [*models(), *torchvision_names()]
    near = difflib.get_close_matches(name.split(".", 1)[0].lower(), known, n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(sorted(near))}?" if near else "`convstem list` prints all names"
    return f"unknown convstem model {name!r}; {hint}"
