"""Builds a timm architecture with its patch embedding swapped for a conv stem."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from timm.models import load_pretrained, model_entrypoint, resolve_pretrained_cfg
from torch import nn

from convstem.specs import StemSpec
from convstem.transplant_model import swap_stem


def create_on_trunk(
    name: str,
    trunk: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a timm architecture on a conv stem, as timm's own entrypoint would.

    Pretrained weights of the trunk are transplanted; a saved model of ours (``hf-hub:``, ``local-dir:``) is loaded as
    it is; without weights the stem starts as the paper's does.

    Args:
        name: our name.
        trunk: timm name of the patchify architecture.
        kwargs: the trunk's own arguments, and ``stem_channels`` etc. (see ``StemSpec``).
    """
    stem = {key.removeprefix("stem_"): kwargs.pop(key) for key in list(kwargs) if key.startswith("stem_")}
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
    ours = cfg.source in ("hf-hub", "local-dir")
    patchify = replace(cfg, architecture=trunk, first_conv=_patchify_conv(cfg.first_conv))
    model = model_entrypoint(trunk)(pretrained=pretrained and not ours, pretrained_cfg=patchify.to_dict(), **kwargs)
    swap_stem(model, StemSpec(**stem) if stem else None, transplanted=pretrained and not ours)
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "architecture": name}
    if pretrained and ours:
        load_pretrained(
            model,
            cfg.to_dict(),
            num_classes=getattr(model, "num_classes", 0),
            in_chans=kwargs.get("in_chans", 3),
            filter_fn=getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None),
        )
    return model


def _patchify_conv(first_conv: str | None) -> str:
    return str(first_conv).replace(".backbone.0.conv", ".proj")
