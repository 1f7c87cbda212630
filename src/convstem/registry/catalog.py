"""Which architectures and weights there are, by name. No torch in this file."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from convstem.errors import RegistryError, UnknownModelError
from convstem.registry.records import Architecture, ElsewhereSpec, ModelSpec, TrunkSpec, WeightsSpec
from convstem.registry.tables import PYRAMID, by_rule, families, make_rows, rows, without_size


@cache
def models() -> Mapping[str, ModelSpec]:
    """Return the architectures of our own families by timm name, in registry order.

    Raises:
        RegistryError: a bad row, or a torchvision name given twice.
    """
    specs = make_rows("architectures.json", rows("architectures"), ModelSpec)
    check_torchvision_names(specs, "architectures.json")
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
def named_trunks() -> Mapping[str, TrunkSpec]:
    """Return the named trunks, the rows of ``registry/trunks.json``, in registry order.

    Raises:
        RegistryError: a bad row, or a trunk that is not in ``timm_trunks.json``.
    """
    trunks = {}
    for name, row in rows("trunks").items():
        if row.get("trunk") not in rows("timm_trunks"):
            raise RegistryError(f"trunks.json: [{name}]: timm_trunks.json has no trunk {row.get('trunk')!r}")
        trunks[name] = {**_measured(row["trunk"]), **row}
    return make_rows("trunks.json", trunks, TrunkSpec)


@cache
def rule_trunks() -> Mapping[str, TrunkSpec]:
    """Return the names by rule: ``<timm name>_convstem`` for every transplantable timm architecture.

    Their patch sizes are 8, 16 and 32, and 14, which becomes 16.
    """
    trunks = {by_rule(trunk): _measured(trunk) for trunk in rows("timm_trunks")}
    return make_rows("timm_trunks.json", trunks, TrunkSpec)


def _measured(trunk: str) -> dict[str, Any]:
    row = rows("timm_trunks")[trunk]
    old, new = row.get("resized_from"), row["patch_size"]
    resized = f"; patches of {old} pixels become {new}, and images grow to keep the token count" if old else ""
    return {"trunk": trunk, **row, "source": f"trunk: timm's {trunk}; stem: the default one{resized}"}


@cache
def architectures() -> Mapping[str, Architecture]:
    """Return every architecture by timm name: our own families, named trunks, and names by rule."""
    return {**models(), **named_trunks(), **rule_trunks()}


@cache
def weights() -> Mapping[str, WeightsSpec]:
    """Return every weights entry by ``architecture.tag``, in registry order; an architecture's first is its default.

    Raises:
        RegistryError: a bad row, or an entry for an architecture that does not exist.
    """
    entries: dict[str, WeightsSpec] = {}
    for file in ("weights", "timm_weights"):
        for entry in make_rows(f"{file}.json", rows(file), WeightsSpec).values():
            _check_architecture(entry, file)
            if entry.name in entries:
                raise RegistryError(f"{file}.json: [{entry.name}]: this name is taken by another file")
            entries[entry.name] = entry
    return entries


@cache
def elsewhere() -> Mapping[str, ElsewhereSpec]:
    """Return the weights that other projects publish, by ``architecture.tag``; they are not pretrained tags.

    Raises:
        RegistryError: a bad row, or an entry for an architecture that does not exist.
    """
    entries = make_rows("elsewhere.json", rows("elsewhere"), ElsewhereSpec)
    for entry in entries.values():
        _check_architecture(entry, "elsewhere")
    return entries


def _check_architecture(entry: WeightsSpec | ElsewhereSpec, file: str) -> None:
    if entry.architecture not in models():
        raise RegistryError(f"{file}.json: [{entry.name}]: {unknown_name(entry.architecture)}")


def weights_of(architecture: str) -> list[WeightsSpec]:
    """Return the weights entries of one architecture, the default first."""
    return _weights_by_architecture().get(architecture, [])


@cache
def _weights_by_architecture() -> Mapping[str, list[WeightsSpec]]:
    groups: dict[str, list[WeightsSpec]] = {}
    for entry in weights().values():
        groups.setdefault(entry.architecture, []).append(entry)
    return groups


def torchvision_names() -> dict[str, str]:
    """Return torchvision name -> timm name."""
    return {spec.torchvision: spec.name for spec in models().values() if spec.torchvision}


def find(name: str) -> Architecture:
    """Return the architecture with this timm or torchvision name, with or without a tag.

    A name of our families with ``_pyramid`` is the same architecture.

    Raises:
        UnknownModelError: no such name; the message lists the nearest ones, or the conv-stem names of a patchify model.
    """
    asked = name.split(".", 1)[0]
    base = asked.removesuffix(PYRAMID)
    spec = architectures().get(torchvision_names().get(base.lower(), base))
    if spec is None:
        raise UnknownModelError(unknown_name(name))
    if base != asked and spec.name not in families():
        raise UnknownModelError(
            f"there is no name {asked}: only convstem's own families have _pyramid names; for the feature pyramid of "
            f"this model: timm.create_model({spec.name!r}, features_only=True, feature_cls='pyramid')"
        )
    return spec


def sized(spec: Architecture, num_classes: int, img_size: int | tuple[int, int]) -> Architecture | None:
    """Return an architecture with another head and image size; None if its counts at that size are not known."""
    if isinstance(spec, ModelSpec):
        return replace(spec, num_classes=num_classes, img_size=img_size) if isinstance(img_size, int) else None
    assert isinstance(spec, TrunkSpec)
    if spec.img_size != img_size:
        same = (other for other in rule_trunks().values() if without_size(other.trunk) == without_size(spec.trunk))
        measured = next((other for other in same if other.img_size == img_size), None)
        if measured is None:
            return None
        spec = replace(measured, name=spec.name, trunk=spec.trunk, unlike=spec.unlike)
    more = num_classes - spec.num_classes
    return replace(
        spec,
        num_classes=num_classes,
        trunk_params=spec.trunk_params + more * spec.class_params,
        trunk_macs=spec.trunk_macs + more * spec.class_macs,
    )


def built(spec: Architecture) -> Architecture:
    """Return an architecture as timm builds it by default: with the head and image size of its default weights."""
    entry = next(iter(weights_of(spec.name)), None)
    return spec if entry is None else sized(spec, entry.num_classes, entry.img_size) or spec


def matching(pattern: str = "") -> list[str]:
    """Return the timm names of architectures that match by their timm or torchvision name, own families first.

    Args:
        pattern: shell-style pattern, or a word in the name; default: all but the names by rule. Names that end in
            ``_pyramid`` match only if the pattern contains this word.
    """
    if not pattern:
        return families()
    spellings = {name: [name, spec.torchvision or ""] for name, spec in architectures().items()}
    if PYRAMID.strip("_") in pattern:
        spellings.update({f"{name}{PYRAMID}": [f"{name}{PYRAMID}"] for name in families()})
    return [name for name, known in spellings.items() if fnmatch.filter(known, as_pattern(pattern))]


def as_pattern(text: str) -> str:
    """Return a shell-style pattern as it is, and a bare word as the pattern of names that contain it."""
    return text if any(sign in text for sign in "*?[") else f"*{text}*"


def unknown_name(name: str) -> str:
    """Return the message for an unknown model name: its conv-stem names, or the nearest names, sorted."""
    base = name.split(".", 1)[0]
    ours = conv_stem_names(base)
    if ours:
        return on_conv_stem(base, ours)
    near = nearest(base)
    hint = f"did you mean {', '.join(sorted(near))}?" if near else "`convstem list --all` prints all names"
    return f"unknown convstem model {name!r}; {hint}"


def on_conv_stem(name: str, ours: list[str]) -> str:
    """Return the message with a patchify model's names on a conv stem."""
    same = f" ({', '.join(ours[1:])} is the same)" if ours[1:] else ""
    return f"{name} is a patchify model of timm; on a conv stem it is {ours[0]}{same}"


def nearest(name: str) -> list[str]:
    """Return at most five timm or torchvision names that contain this one or look most like it."""
    import difflib  # only when a name is wrong

    known, wanted = list(dict.fromkeys([*architectures(), *torchvision_names()])), name.lower()
    holding = [other for other in known if wanted in other]
    alike = holding or difflib.get_close_matches(wanted, known, n=5, cutoff=0.5)
    if not alike:  # compare the words of names, so that dinov4 finds dinov3
        words = {word for other in known for word in other.split("_")}
        alike = [other for word in difflib.get_close_matches(wanted, words) for other in known if word in other]
    return alike[:5]


def conv_stem_names(trunk: str) -> list[str]:
    """Return our names for a timm architecture on a conv stem, the preferred one first; none if it is not a trunk."""
    return list(dict.fromkeys([transplanted_name(trunk), by_rule(trunk)])) if trunk in rows("timm_trunks") else []


def transplanted_name(architecture: str) -> str:
    """Return our name for a timm architecture on a conv stem: a row's, at any image size, or the name by rule."""
    ours = [(name, spec.trunk) for name, spec in models().items() if spec.trunk]
    ours += [(name, spec.trunk) for name, spec in named_trunks().items() if architecture not in spec.unlike]
    named = {without_size(trunk): name for name, trunk in ours}
    return named.get(without_size(architecture), by_rule(architecture))
