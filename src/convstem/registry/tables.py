"""Reads ``registry/*``, and makes frozen records of its rows. No torch in this file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from convstem.errors import RegistryError

Spec = TypeVar("Spec")
"""A frozen dataclass of ``records``."""


def data_dir(name: str) -> Path:
    """Return the folder ``registry`` or ``hub_cards``: in the installed package, or beside ``src`` in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "data" / name, package.parents[1] / name):
        if folder.is_dir():
            return folder
    raise RegistryError(
        f"convstem's data folder {name!r} is missing from the installation; reinstall convstem, unpacked if it lies in "
        "a zip file; a frozen application has to collect it (PyInstaller: --collect-data convstem)"
    )


def make_rows(file: str, rows: Mapping[str, Any], spec: type[Spec]) -> dict[str, Spec]:
    """Make records from the rows of a file, by name and in their order.

    Raises:
        RegistryError: an unknown or missing field, or a value the record refuses.
    """
    known = {f.name: f for f in fields(spec) if f.name != "name"}  # type: ignore[arg-type]  # a dataclass
    required = frozenset(n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING)
    read = partial(_make, spec, frozenset(known), required)
    return {name: read(name, table, f"{file}: [{name}]") for name, table in rows.items()}


def read_tables(path: Path) -> dict[str, Any]:
    """Return the rows of a JSON file as they are, by name.

    Raises:
        RegistryError: no such file, not JSON, or a name given twice.
    """
    try:
        rows = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path.name}: {error}") from error
    if not isinstance(rows, dict):
        raise RegistryError(f"{path.name}: expected an object of rows by name; got {type(rows).__name__}")
    return rows


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ``RegistryError`` for a name given twice, which JSON would take silently."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise RegistryError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return table


def _make(
    spec: type[Spec], known: frozenset[str], required: frozenset[str], name: str, table: object, where: str
) -> Spec:
    if not isinstance(table, Mapping):
        raise RegistryError(f"{where}: expected a table of fields, got {table!r}")
    unknown = sorted(table.keys() - known)
    if unknown:
        raise RegistryError(f"{where}: unknown field {', '.join(unknown)}; the fields are {', '.join(sorted(known))}")
    missing = sorted(required - table.keys())
    if missing:
        raise RegistryError(f"{where}: missing field {', '.join(missing)}")
    try:
        make: Any = spec
        return make(name=name, **{key: freeze(value) for key, value in table.items()})
    except (TypeError, ValueError) as error:
        raise RegistryError(f"{where}: {error}") from error


def freeze(value: Any) -> Any:
    """Return a list of a JSON file as a tuple, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value
