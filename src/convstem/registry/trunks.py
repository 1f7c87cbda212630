"""Architectures whose trunk is another timm architecture: which there are, and the tags they take over from timm.

Named ones are rows of ``registry/trunks.toml``; by rule, on request, ``<timm name>_convstem`` exists for every timm
architecture of ``registry/timm_trunks.json`` (patch 8, 16 or 32).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache

from convstem.registry import catalog, tables
from convstem.registry.records import TrunkSpec


def with_pyramid() -> list[str]:
    """Return the names that also exist with ``_pyramid`` behind them: every row's and every named trunk's."""
    return [*catalog.models(), *named_trunks()]


@cache
def named_trunks() -> Mapping[str, TrunkSpec]:
    """Return the named trunk architectures, in registry order."""
    return tables.read_rows(tables.data_dir("registry") / "trunks.toml", TrunkSpec)


@cache
def rule_trunks() -> Mapping[str, TrunkSpec]:
    """Return ``<timm name>_convstem`` for every transplantable timm architecture."""
    path = tables.data_dir("registry") / "timm_trunks.json"
    names = json.loads(path.read_text(encoding="utf-8"))
    return {f"{name}_convstem": TrunkSpec(f"{name}_convstem", name) for name in names}


def transplanted_name(architecture: str) -> str:
    """Return our name for a timm architecture on a conv stem: a row's, at any image size, or the one made by rule."""
    rows = {without_size(spec.trunk): name for name, spec in catalog.models().items() if spec.trunk}
    rows |= {without_size(spec.trunk): name for name, spec in named_trunks().items() if architecture not in spec.unlike}
    return rows.get(without_size(architecture), f"{architecture}_convstem")


def without_size(architecture: str) -> str:
    """Return a timm name without the image size at its end, if it has one; DINOv3's, among others, have none."""
    name, _, size = architecture.rpartition("_")
    return name if size.isdigit() else architecture
