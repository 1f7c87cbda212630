"""Architectures whose trunk is another timm architecture, on the default stem.

Named ones are rows of ``registry/trunks.json``. The names by rule are ``<timm name>_convstem``, for every timm
architecture of ``registry/timm_trunks.json``: patch 8, 16 and 32, and 14, which becomes 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from convstem.errors import RegistryError
from convstem.registry.names import RESIZED, by_rule, rows
from convstem.registry.records import TrunkSpec
from convstem.registry.tables import make_rows


@cache
def named_trunks() -> Mapping[str, TrunkSpec]:
    """Return the named trunk architectures, in registry order.

    Raises:
        RegistryError: a bad row, or a trunk that ``timm_trunks.json`` does not have.
    """
    trunks = {}
    for name, row in rows("trunks").items():
        if row.get("trunk") not in rows("timm_trunks"):
            raise RegistryError(f"trunks.json: [{name}]: timm_trunks.json has no trunk {row.get('trunk')!r}")
        trunks[name] = {**_measured(row["trunk"]), **row}
    return make_rows("trunks.json", trunks, TrunkSpec)


@cache
def rule_trunks() -> Mapping[str, TrunkSpec]:
    """Return ``<timm name>_convstem`` for every transplantable timm architecture."""
    trunks = {by_rule(trunk): _measured(trunk) for trunk in rows("timm_trunks")}
    return make_rows("timm_trunks.json", trunks, TrunkSpec)


def _measured(trunk: str) -> dict[str, Any]:
    row = rows("timm_trunks")[trunk]
    old, new = row.get("resized_from"), row["patch_size"]
    resized = f"; patches of {old} pixels become {new}, and images as much larger: as many tokens" if old else ""
    return {"trunk": trunk, **row, "source": f"trunk: timm's {trunk}; stem: the default one{resized}"}


def kept(patch: int | None) -> str:
    """Return in a few words what a transplant keeps, given the patch size its filters were resized from, if any."""
    return f"patches resized from {patch} to {RESIZED} pixels" if patch else "function preserved"
