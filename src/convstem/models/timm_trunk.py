"""Builds a timm architecture with its patch embedding swapped for a conv stem."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from timm.layers import LayerNorm, to_2tuple
from timm.models import PretrainedCfg, load_pretrained, model_entrypoint, resolve_pretrained_cfg
from torch import nn

from convstem.errors import ArgumentError
from convstem.features.pyramid import pyramid_on_request
from convstem.files.safetensors import check_header
from convstem.hub.provenance import forget
from convstem.registry.names import RESIZED, resized_from, resized_input
from convstem.registry.stem_spec import StemSpec, check_arguments
from convstem.stem.norms import layer_norm
from convstem.transplanting.surgery import swap_stem
from convstem.upstream.private import timm_feature_getter
from convstem.weights.from_config import checks_config
from convstem.weights.pretrained import build_pretrained


@checks_config
@pyramid_on_request
def create_on_trunk(
    name: str,
    trunk: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    norm_eps: float | None = None,
    as_saved: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a timm architecture on a conv stem, as timm's own entrypoint would.

    Pretrained weights of the trunk are transplanted; a saved model of ours (``hf-hub:``, ``local-dir:``) is loaded as
    it is; without weights the stem starts as the paper's does.

    Args:
        name: our name.
        trunk: timm name of the patchify architecture.
        norm_eps: epsilon of the trunk's LayerNorms; default: the trunk's own.
        as_saved: see ``build_pretrained``.
        kwargs: the trunk's own arguments, and ``stem_channels`` etc. (see ``StemSpec``).
    """
    if norm_eps is not None:
        kwargs["norm_layer"] = layer_norm(LayerNorm, norm_eps, kwargs.get("norm_layer"))
    changes = {field.name: kwargs.pop(f"stem_{field.name}", None) for field in fields(StemSpec)}
    stem_arguments = [f"stem_{field}" for field in changes]
    check_arguments(name, (key for key in kwargs if key.startswith("stem_")), stem_arguments)
    build = partial(_build, name, trunk, changes)
    if pretrained:
        return build_pretrained(build, name, pretrained_cfg, pretrained_cfg_overlay, as_saved=as_saved, **kwargs)
    model = build(False, resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay), **kwargs)
    forget(model)  # the cfg describes pretrained weights, and these are not
    return model


def _build(
    name: str, trunk: str, changes: dict[str, Any], pretrained: bool, pretrained_cfg: PretrainedCfg, **kwargs: Any
) -> nn.Module:
    """Build and load; here ``pretrained_cfg`` names a file where the weights are at hand."""
    ours = pretrained and _has_stem(pretrained_cfg)
    first_conv = resolve_pretrained_cfg(trunk).first_conv
    patchify = replace(pretrained_cfg, architecture=trunk, first_conv=first_conv)
    size, patch = pretrained_cfg.input_size, resized_from(trunk)
    if patch:  # timm resizes filters while it loads, and positions if the grid changes: it has to know the source's
        kwargs = {"patch_size": RESIZED, "img_size": size[1:], **kwargs}
        if kwargs["patch_size"] == RESIZED and not kwargs.get("dynamic_img_size"):
            _check_size(kwargs["img_size"], patch)
        patchify = replace(patchify, input_size=resized_input(size, RESIZED, patch))
    model = model_entrypoint(trunk)(pretrained=pretrained and not ours, pretrained_cfg=patchify, **kwargs)
    resized = None if kwargs.get("patch_size") == patch else patch
    swap_stem(model, transplanted=pretrained and not ours, changes=changes, cached=True, resized_from=resized)
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "architecture": name, "input_size": size}
    if ours:
        features = isinstance(model, timm_feature_getter())
        inner = model.model if features else model
        load_pretrained(
            inner,
            pretrained_cfg.to_dict(),
            num_classes=0 if features else getattr(model, "num_classes", 0),
            in_chans=kwargs.get("in_chans", 3),
            filter_fn=getattr(sys.modules[type(inner).__module__], "checkpoint_filter_fn", None),
        )
    return model


def _check_size(img_size: Any, patch: int) -> None:
    """Raise ``ArgumentError`` for an image that fits the source's patches, but not those they became."""
    sides = to_2tuple(img_size or 0)
    if any(side % RESIZED for side in sides) and not any(side % patch for side in sides):
        _, *larger = resized_input((3, *sides), patch, RESIZED)
        raise ArgumentError(
            f"img_size {img_size} is of patches of {patch} pixels, the source's; here they have {RESIZED}, and as many "
            f"have {larger[0]} x {larger[1]}: pass img_size={larger}"
        )


def _has_stem(cfg: PretrainedCfg) -> bool:
    """Tell whether the weights are those of a saved model of ours, and not of a patchify trunk."""
    if str(cfg.file).endswith(".safetensors"):
        return any(".backbone.0.conv." in key for key in check_header(Path(cfg.file)))
    return cfg.source == "local-dir"
