"""Architectures whose trunk is another timm architecture: which there are, and the tags they take over from timm.

Named ones are rows of ``registry/trunks.toml``; by rule, on request, ``<timm name>_convstem`` exists for every timm
architecture of ``registry/timm_trunks.json`` (patch 8, 16 or 32).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
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


def trunk_cfgs(spec: TrunkSpec, sizes: bool) -> dict[str, Any]:
    """Return timm's pretrained cfgs of a trunk under our name, by ``name.tag``, in timm's order.

    Args:
        spec: the architecture.
        sizes: include the trunk's other image sizes, their tags with a suffix.
    """
    from timm.models import _registry

    prefix, _, size = spec.trunk.rpartition("_")
    others = []
    if sizes and size.isdigit():
        others = [
            n for n in _registry._model_default_cfgs if n.startswith(f"{prefix}_") and n[len(prefix) + 1 :].isdigit()
        ]
    found = {}
    for source in [spec.trunk, *(name for name in others if name != spec.trunk)]:
        suffix = "" if source == spec.trunk else source[len(prefix) :]
        for name in _registry._model_with_tags[source]:
            cfg = _registry._model_pretrained_cfgs[name]
            tag = name.partition(".")[2]
            found[f"{spec.name}.{tag}{suffix}" if tag else spec.name] = replace(
                cfg, first_conv=_stem_conv(cfg.first_conv)
            )
    return found


def _stem_conv(first_conv: str | None) -> str:
    """Return the key of the first stem convolution for a patchify model's first convolution."""
    return f"{str(first_conv).removesuffix('.proj')}.backbone.0.conv"
