"""The pretrained tags that architectures on other timm trunks take over from timm."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from convstem.registry.records import TrunkSpec


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
