"""The range of a model's normalised pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torchvision
from torch import nn

from convstem.errors import ArgumentError

PixelRange: TypeAlias = tuple[Sequence[float], Sequence[float]]


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation that torchvision's own ViT weights were trained with."""


def normalised_range(mean: Sequence[float], std: Sequence[float], in_chans: int) -> PixelRange:
    """Return black and white after normalisation, per channel; further channels repeat the given ones."""
    channels = [index % len(mean) for index in range(in_chans)]
    return [(0 - mean[c]) / std[c] for c in channels], [(1 - mean[c]) / std[c] for c in channels]


def range_of(model: nn.Module, in_chans: int) -> PixelRange:
    """Return black and white as a model sees them, by its own normalisation.

    Raises:
        ArgumentError: the model does not state its mean and std.
    """
    if isinstance(model, torchvision.models.VisionTransformer):
        return normalised_range(*_IMAGENET, in_chans)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if "mean" not in cfg or "std" not in cfg:
        raise ArgumentError(
            "the model has no pretrained_cfg with mean and std, so the range of its pixels is unknown: pass "
            "pixel_range=(low, high), each with one normalised value per channel"
        )
    return normalised_range(cfg["mean"], cfg["std"], in_chans)
