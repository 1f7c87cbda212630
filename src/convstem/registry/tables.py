"""Reads ``registry/*`` into frozen records. No torch in this file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from convstem.errors import RegistryError
from convstem.registry.records import ElsewhereSpec, ModelSpec, TrunkSpec, WeightsSpec

Record = TypeVar("Record", ElsewhereSpec, ModelSpec, TrunkSpec, WeightsSpec)


COMPILED = "compiled.json"
"""The TOML files as JSON, which parses many times faster: every import of timm or torchvision pays for it."""


def data_dir(name: str) -> Path:
    """Return the folder ``registry`` or ``hub_cards``: in the installed package, or beside ``src`` in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "data" / name, package.parents[1] / name):
        if folder.is_dir():
            return folder
    raise RegistryError(f"convstem's data folder {name!r} is missing from the installation; reinstall convstem")


def read_rows(path: Path, record: type[Record]) -> dict[str, Record]:
    """Read one TOML file of ``[name]`` tables, or the same as JSON, into records, in file order.

    Raises:
        RegistryError: not TOML or JSON, a duplicate row, an unknown or missing field, or a value the record refuses.
    """
    return make_rows(path.name, read_tables(path), record)


def make_rows(file: str, rows: Mapping[str, Any], record: type[Record]) -> dict[str, Record]:
    """Make records from the tables of a file; see ``read_rows``."""
    known = {f.name: f for f in fields(record) if f.name != "name"}
    required = frozenset(n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING)
    read = partial(_record, record, frozenset(known), required)
    return {name: read(name, table, f"{file}: [{name}]") for name, table in rows.items()}


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
