"""Architectures whose trunk is another timm architecture, on the default stem.

Named ones are rows of ``registry/trunks.json``. The names by rule are ``<timm name>_convstem``, for every timm
architecture of ``registry/timm_trunks.json``: patch 8, 16 and 32, and 14, which becomes 16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from convstem.errors import RegistryError
from convstem.registry import tables
from convstem.registry.records import TrunkSpec

RESIZED = 16
"""Pixels per patch of a model whose own patch size stride-2 layers cannot make: the nearest power of two to 14."""


@cache
def trunk_tables() -> Mapping[str, Mapping[str, Any]]:
    """Return what is known of each timm architecture whose patch embedding a stem can replace, by timm name."""
    return tables.read_tables(tables.data_dir("registry") / "timm_trunks.json")


@cache
def named_tables() -> Mapping[str, Mapping[str, Any]]:
    """Return the rows of ``registry/trunks.json`` as they are, by our name."""
    return tables.read_tables(tables.data_dir("registry") / "trunks.json")


def trunks() -> dict[str, str]:
    """Return our name -> timm's for every architecture on another timm trunk, without making the records."""
    named = {name: str(row.get("trunk")) for name, row in named_tables().items()}
    return {**named, **{by_rule(trunk): trunk for trunk in trunk_tables()}}


def by_rule(trunk: str) -> str:
    """Return the name that is made by rule for a timm architecture."""
    return f"{trunk}_convstem"


@cache
def named_trunks() -> Mapping[str, TrunkSpec]:
    """Return the named trunk architectures, in registry order.

    Raises:
        RegistryError: a bad row, or a trunk that ``timm_trunks.json`` does not have.
    """
    rows = {}
    for name, row in named_tables().items():
        if row.get("trunk") not in trunk_tables():
            raise RegistryError(f"trunks.json: [{name}]: timm_trunks.json has no trunk {row.get('trunk')!r}")
        rows[name] = {**_measured(row["trunk"]), **row}
    return tables.make_rows("trunks.json", rows, TrunkSpec)


@cache
def rule_trunks() -> Mapping[str, TrunkSpec]:
    """Return ``<timm name>_convstem`` for every transplantable timm architecture."""
    rows = {by_rule(trunk): _measured(trunk) for trunk in trunk_tables()}
    return tables.make_rows("timm_trunks.json", rows, TrunkSpec)


def _measured(trunk: str) -> dict[str, Any]:
    row = trunk_tables()[trunk]
    old, new = row.get("resized_from"), row["patch_size"]
    resized = f"; patches of {old} pixels become {new}, and images as much larger: as many tokens" if old else ""
    return {"trunk": trunk, **row, "source": f"trunk: timm's {trunk}; stem: the default one{resized}"}


def resized_from(trunk: str) -> int | None:
    """Return the patch size of a timm architecture whose patches a stem makes larger; None of all others."""
    return trunk_tables().get(trunk, {}).get("resized_from")  # an unknown trunk is reported by named_trunks


def kept(patch: int | None) -> str:
    """Return in a few words what a transplant keeps, given the patch size its filters were resized from, if any."""
    return f"patches resized from {patch} to {RESIZED} pixels" if patch else "function preserved"


def resized_input(size: Sequence[int], old: int, new: int) -> tuple[int, int, int]:
    """Return the image [channels, height, width] that has as many patches of ``new`` pixels as this one of ``old``."""
    channels, height, width = size
    return channels, height // old * new, width // old * new


def without_size(architecture: str) -> str:
    """Return a timm name without the image size at its end, if it has one; DINOv3's, among others, have none."""
    name, _, size = architecture.rpartition("_")
    return name if size.isdigit() else architecture
