"""Reads ``registry/*.toml`` into frozen records. Adding a model is adding a row. No torch in this file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from convstem.specs import ModelSpec, TrunkSpec, WeightsSpec

Record = TypeVar("Record", ModelSpec, TrunkSpec, WeightsSpec)


COMPILED = "compiled.json"
"""The TOML files as JSON, which parses many times faster: every import of timm or torchvision pays for it."""


class RegistryError(ValueError):
    """A file of ``registry/`` is wrong; the message names the file and the row."""


def data_dir(name: str) -> Path:
    """Return the folder ``registry`` or ``hub_cards``: in the installed package, or beside ``src`` in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "data" / name, package.parents[1] / name):
        if folder.is_dir():
            return folder
    raise RegistryError(f"convstem's data folder {name!r} is missing from the installation; reinstall convstem")


def read_rows(path: Path, record: type[Record]) -> dict[str, Record]:
    """Read one TOML file of ``[name]`` tables, or the same as JSON, into records, in file order.

    Raises:
        RegistryError: not TOML or JSON, a duplicate row, an unknown or missing field, or a value the record refuses.
    """
    known = {f.name: f for f in fields(record) if f.name != "name"}
    required = frozenset(n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING)
    read = partial(_record, record, frozenset(known), required)
    return {name: read(name, table, f"{path.name}: [{name}]") for name, table in read_tables(path).items()}


def read_tables(path: Path) -> dict[str, Any]:
    """Return a file's tables: JSON, or TOML, which is taken from the compiled file if that is of the same content.

    Raises:
        RegistryError: not TOML or JSON; a duplicate row of TOML is one reason.
    """
    content = path.read_bytes()
    if path.suffix == ".toml":
        compiled = _compiled(path.parent).get(path.name)
        if compiled and compiled["sha1"] == fingerprint(content):
            return dict(compiled["tables"])
        return parse_toml(path.name, content)
    try:
        return dict(json.loads(content))
    except ValueError as error:
        raise RegistryError(f"{path.name}: {error}") from error


def parse_toml(name: str, content: bytes) -> dict[str, Any]:
    """Return the tables of a TOML file with this name and content."""
    if sys.version_info >= (3, 11):
        import tomllib  # takes as long as everything else here, so only when it is needed
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(content.decode())
    except ValueError as error:
        raise RegistryError(f"{name}: {error}") from error


def fingerprint(content: bytes) -> str:
    """Return what tells one content of a file from another."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@cache
def _compiled(folder: Path) -> dict[str, Any]:
    path = folder / COMPILED
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _record(
    record: type[Record], known: frozenset[str], required: frozenset[str], name: str, table: object, where: str
) -> Record:
    if not isinstance(table, Mapping):
        raise RegistryError(f"{where}: expected a table of fields, got {table!r}")
    unknown = sorted(table.keys() - known)
    if unknown:
        raise RegistryError(f"{where}: unknown field {', '.join(unknown)}; the fields are {', '.join(sorted(known))}")
    missing = sorted(required - table.keys())
    if missing:
        raise RegistryError(f"{where}: missing field {', '.join(missing)}")
    try:
        return record(name=name, **{key: _freeze(value) for key, value in table.items()})
    except (TypeError, ValueError) as error:
        raise RegistryError(f"{where}: {error}") from error


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


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


def torchvision_names() -> dict[str, str]:
    """Return torchvision name -> timm name."""
    return {spec.torchvision: spec.name for spec in models().values() if spec.torchvision}


def find(name: str) -> ModelSpec:
    """Return the architecture with this timm or torchvision name (a tag after a dot is ignored).

    Raises:
        KeyError: no such name; the message lists the nearest ones.
    """
    base = name.split(".", 1)[0]
    spec = models().get(torchvision_names().get(base.lower(), base))
    if spec is None:
        raise KeyError(unknown_name(name))
    return spec


def unknown_name(name: str) -> str:
    """Return the sentence that answers an unknown model name: the nearest names, sorted."""
    import difflib  # only when a name is wrong

    known = [*models(), *torchvision_names()]
    near = difflib.get_close_matches(name.split(".", 1)[0].lower(), known, n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(sorted(near))}?" if near else "`convstem list` prints all names"
    return f"unknown convstem model {name!r}; {hint}"
