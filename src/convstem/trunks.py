"""Architectures whose trunk is another timm architecture: which there are, and the tags they take over from timm.

Named ones are rows of ``registry/trunks.toml``; by rule, on request, ``<timm name>_convstem`` exists for every timm
architecture of ``registry/timm_trunks.json`` (patch 8, 16 or 32).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from convstem import registry
from convstem.specs import TrunkSpec


@cache
def named_trunks() -> Mapping[str, TrunkSpec]:
    """Return the named trunk architectures, in registry order."""
    return registry.read_rows(registry.data_dir("registry") / "trunks.toml", TrunkSpec)


@cache
def rule_trunks() -> Mapping[str, TrunkSpec]:
    """Return ``<timm name>_convstem`` for every transplantable timm architecture."""
    path = registry.data_dir("registry") / "timm_trunks.json"
    names = json.loads(path.read_text(encoding="utf-8"))
    return {f"{name}_convstem": TrunkSpec(f"{name}_convstem", name) for name in names}


def transplanted_name(architecture: str) -> str:
    """Return our name for a timm architecture on a conv stem: a row's, at any image size, or the one made by rule."""
    rows = {without_size(spec.trunk): name for name, spec in registry.models().items() if spec.trunk}
    rows |= {without_size(spec.trunk): name for name, spec in named_trunks().items() if architecture not in spec.unlike}
    return rows.get(without_size(architecture), f"{architecture}_convstem")


def without_size(architecture: str) -> str:
    """Return a timm name without the image size at its end, if it has one; DINOv3's, among others, have none."""
    name, _, size = architecture.rpartition("_")
    return name if size.isdigit() else architecture


def trunk_cfgs(specs: Iterable[TrunkSpec], sizes: bool) -> dict[str, Any]:
    """Return timm's pretrained cfgs of some trunks under our names, by ``name.tag``, in timm's order.

    Args:
        specs: the architectures.
        sizes: include a trunk's other image sizes, their tags with a suffix.
    """
    from timm.models import _registry

    siblings = _siblings(_registry._model_default_cfgs) if sizes else {}
    found = {}
    for spec in specs:
        prefix = spec.trunk.rpartition("_")[0]
        others = [name for name in siblings.get(prefix, ()) if name not in (spec.trunk, *spec.unlike)]
        for source in [spec.trunk, *(others if spec.trunk in siblings.get(prefix, ()) else ())]:
            suffix = "" if source == spec.trunk else source.removeprefix(prefix)
            for name in _registry._model_with_tags[source]:
                cfg, tag = _registry._model_pretrained_cfgs[name], name.partition(".")[2]
                ours = f"{spec.name}.{tag}{suffix}" if tag else spec.name
                found[ours] = copy.copy(cfg)  # every import of timm pays: dataclasses.replace takes ten times as long
                found[ours].first_conv = _stem_conv(cfg.first_conv)
    return found


def _siblings(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names that end in an image size by what comes before it."""
    groups: dict[str, list[str]] = {}
    for name in names:
        prefix, _, size = name.rpartition("_")
        if size.isdigit():
            groups.setdefault(prefix, []).append(name)
    return groups


def _stem_conv(first_conv: str | None) -> str:
    """Return the key of the first stem convolution for a patchify model's first convolution."""
    return f"{str(first_conv).removesuffix('.proj')}.backbone.0.conv"
