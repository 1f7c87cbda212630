"""Folds the BatchNorm of a model's stem into its convolutions."""

from __future__ import annotations

import copy

from torch import nn

from convstem.errors import ArgumentError, warn
from convstem.stem.find import find_embed, find_stem
from convstem.stem.norms import fold_stem, stem_norm
from convstem.upstream.private import timm_set_metadata


def fold(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Return a model whose stem has no BatchNorm but computes in eval mode what it computed with it.

    The result is an ordinary model with ``stem_norm="none"``: it is saved, pushed, converted and exported like any
    other, and can be trained. The folding is done in float64.

    Args:
        model: a conv-stem ViT of timm or torchvision in eval mode.
        inplace: change the model instead of a copy.

    Raises:
        ArgumentError: the model is in training mode, in which BatchNorm computes something else.
        UnsupportedModelError: no conv stem, or one with SyncBatchNorm, hooks or parametrizations.

    Warns:
        UserWarning: the stem has nothing to fold, no norm or LayerNorm; the model is returned as it is.
    """
    stem = find_stem(model)
    norm = stem_norm(stem)
    if norm in ("layernorm2d", "none"):
        has = "has no norm already" if norm == "none" else "has LayerNorm, which depends on the image"
        warn(f"nothing was folded: the stem of this model {has}. The model is returned as it is")
        return model
    if model.training or stem.training:
        raise ArgumentError(
            "a model in training mode is not folded, for its BatchNorm computes with the statistics of the batch: "
            "call model.eval() first"
        )
    folded = model if inplace else copy.deepcopy(model)
    embed = find_embed(folded)
    if embed is None:
        fold_stem(find_stem(folded))
        return folded
    embed.fuse()
    timm_set_metadata(folded, {"stem_norm": "none", "stem_bias": True})
    return folded
