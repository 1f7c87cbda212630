"""The range of a model's normalised pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torchvision
from torch import nn

from convstem.errors import ArgumentError

PixelRange: TypeAlias = tuple[Sequence[float], Sequence[float]]


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation that torchvision's own ViT weights were trained with."""


def normalised_range(mean: Sequence[float], std: Sequence[float], in_chans: int) -> PixelRange | None:
    """Return black and white after normalisation, per channel; None for channels that mean and std do not tell of.

    Raises:
        ArgumentError: a standard deviation is not positive, or mean and std are not finite or differ in length.
    """
    if len(mean) != len(std) or not all(map(math.isfinite, (*mean, *std))) or not all(value > 0 for value in std):
        raise ArgumentError(
            "mean and std need one finite value for each channel, and std positive ones; "
            f"got mean {list(mean)}, std {list(std)}: correct the pretrained_cfg"
        )
    if in_chans > len(mean):
        return None
    channels = list(zip(mean, std, strict=True))[:in_chans]
    return [(0 - m) / s for m, s in channels], [(1 - m) / s for m, s in channels]


def both_ends(pixel_range: PixelRange) -> PixelRange:
    """Return the two ends of a range that a user gives.

    Raises:
        ArgumentError: there are not two.
    """
    try:
        low, high = pixel_range
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"pixel_range is (low, high), each with one normalised value per channel; got {pixel_range!r}"
        ) from error
    return low, high


def range_of(model: nn.Module, in_chans: int) -> PixelRange | None:
    """Return the lowest and the highest normalised pixel of each channel, or None if the model does not tell."""
    if isinstance(model, torchvision.models.VisionTransformer):
        return normalised_range(*_IMAGENET, in_chans)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return normalised_range(cfg["mean"], cfg["std"], in_chans) if cfg.get("mean") and cfg.get("std") else None
