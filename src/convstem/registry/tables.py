"""Reads ``registry/*``, makes frozen records of its rows, and answers which names there are.

Registration reads only the names, because every import of timm or torchvision pays for it. ``catalog`` makes and checks
the records of the same rows when they are first needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from convstem.errors import RegistryError

Spec = TypeVar("Spec")
"""A frozen dataclass of ``records``."""


def data_dir(name: str) -> Path:
    """Return the folder ``registry`` or ``hub_cards``, in the installed package or beside ``src`` in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "data" / name, package.parents[1] / name):
        if folder.is_dir():
            return folder
    raise RegistryError(
        f"convstem's data folder {name!r} is missing from the installation; reinstall convstem, unpacked if it is in a "
        "zip file; a frozen application has to collect it (PyInstaller: --collect-data convstem)"
    )


def make_rows(file: str, rows: Mapping[str, Any], spec: type[Spec]) -> dict[str, Spec]:
    """Make records from the rows of a file, by name, in the file's order.

    Raises:
        RegistryError: an unknown or missing field, or a value that the record refuses.
    """
    known = {f.name: f for f in fields(spec) if f.name != "name"}  # type: ignore[arg-type]  # a dataclass
    required = frozenset(n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING)
    read = partial(_make, spec, frozenset(known), required)
    return {name: read(name, table, f"{file}: [{name}]") for name, table in rows.items()}


def read_tables(path: Path) -> dict[str, Any]:
    """Return the raw rows of a JSON file by name.

    Raises:
        RegistryError: no such file, not JSON, or a name given twice.
    """
    try:
        rows = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path.name}: {error}") from error
    if not isinstance(rows, dict):
        raise RegistryError(f"{path.name}: expected an object of entries by name; got {type(rows).__name__}")
    return rows


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ``RegistryError`` for a name given twice, which Python's JSON reader accepts."""
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
    """Return a list as a tuple, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


PYRAMID = "_pyramid"
"""Suffix of the timm names for which ``features_only=True`` means the feature pyramid."""

FIRST_IN_EMBED = "backbone.0.conv"
"""Path of a stem's first convolution in a timm patch embedding; timm adapts it to other channel counts."""

FIRST_CONV = f"patch_embed.{FIRST_IN_EMBED}"
"""Path of the same convolution in a plain ViT."""

RESIZED = 16
"""Patch size that replaces one stride-2 layers cannot make: the power of two nearest to 14."""

Rows = Mapping[str, Mapping[str, Any]]
"""Rows of a registry file, by name."""


@cache
def rows(file: str) -> Rows:
    """Return the rows of ``registry/<file>.json`` by name, in the file's order.

    ``architectures`` has our own families, ``weights`` and ``timm_weights`` their pretrained tags, and ``trunks`` the
    timm architectures on a conv stem under our own names. ``timm_trunks`` has the facts of every transplantable timm
    architecture, by timm name.

    Raises:
        RegistryError: no such file, not JSON, or a name given twice.
    """
    return read_tables(data_dir("registry") / f"{file}.json")


def weights_rows() -> Mapping[str, Rows]:
    """Return the weights rows of our own families, by architecture and ``architecture.tag``, the default first."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, row in [*rows("weights").items(), *rows("timm_weights").items()]:
        groups.setdefault(name.partition(".")[0], {})[name] = row
    return groups


def families() -> list[str]:
    """Return the names of our own families and of named trunks; these also exist with the suffix ``_pyramid``."""
    return [*rows("architectures"), *rows("trunks")]


def trunks() -> dict[str, str]:
    """Return our name -> timm's name for named trunks and names by rule."""
    named = {name: str(row.get("trunk")) for name, row in rows("trunks").items()}
    return {**named, **{by_rule(trunk): trunk for trunk in rows("timm_trunks")}}


def by_rule(trunk: str) -> str:
    """Return the name by rule of a timm architecture."""
    return f"{trunk}_convstem"


def without_size(architecture: str) -> str:
    """Return a timm name without the image size at its end; some names, such as DINOv3's, have none."""
    name, _, size = architecture.rpartition("_")
    return name if size.isdigit() else architecture


def resized_from(trunk: str) -> int | None:
    """Return the patch size of a timm architecture whose patches are resized for a stem; None for all others."""
    return rows("timm_trunks").get(trunk, {}).get("resized_from")  # catalog.named_trunks reports an unknown trunk


def resized_input(size: Sequence[int], old: int, new: int) -> tuple[int, int, int]:
    """Return the image size [channels, height, width] with as many patches of ``new`` pixels as this has of ``old``."""
    channels, height, width = size
    return channels, height // old * new, width // old * new


def what_is_kept(resized: int | None) -> str:
    """Return in a few words what a transplant keeps; ``resized`` is the patch size before resizing, if any."""
    return f"patches resized from {resized} to {RESIZED} pixels" if resized else "function preserved"
