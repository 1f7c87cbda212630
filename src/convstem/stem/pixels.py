"""The range of normalised pixels, which a stem without room for both signs has to know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from convstem.errors import ArgumentError

PixelRange: TypeAlias = tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]
"""The lowest and the highest normalised pixel of each channel."""


def normalised_range(
    mean: Sequence[float], std: Sequence[float], in_chans: int
) -> tuple[list[float], list[float]] | None:
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


def lowest_pixels(pixel_range: PixelRange, in_chans: int) -> Tensor:
    """Return the lowest pixel of each channel, [in_chans] in float64, of a range that a user gives.

    Raises:
        ArgumentError: it has not two ends, or they are no values of these channels, the lower below the higher.
    """
    try:
        low, high = pixel_range
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"pixel_range is (low, high), each with one normalised value per channel; got {pixel_range!r}"
        ) from error
    bottom, top = numbers(low), numbers(high)
    if not bottom.shape == top.shape == (in_chans,):
        raise ArgumentError(
            f"low and high need one value for each of {in_chans} input channels; got {low!r} and {high!r}: "
            "they are (0 - mean) / std and (1 - mean) / std"
        )
    if not (bottom < top).all() or not torch.cat([bottom, top]).isfinite().all():
        raise ArgumentError(
            f"low must be below high in every channel, and both finite; got {low!r} and {high!r}: swap or correct them"
        )
    return bottom


def numbers(values: object) -> Tensor:
    """Return a list of numbers in float64; what is none has no length that fits."""
    try:
        return torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (RuntimeError, TypeError, ValueError):
        return torch.zeros(0, dtype=torch.float64, device="cpu")
