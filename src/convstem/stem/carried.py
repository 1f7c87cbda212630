"""What a stem carries of a patch embedding, and for which inputs it is exact; ``carry`` computes its parameters.

A stem without room for both signs needs the range of normalised pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemSpec
from convstem.registry.strides import DARK, ZERO, reads_last, tokens_in_words

PixelRange: TypeAlias = tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]
"""The lowest and the highest normalised pixel of each channel."""


def normalised_range(
    mean: Sequence[float], std: Sequence[float], in_chans: int
) -> tuple[list[float], list[float]] | None:
    """Return black and white after normalisation, per channel; None if there are fewer means than channels.

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
    """Return the lowest pixel of each channel, [in_chans] in float64, of a range given by the user.

    Raises:
        ArgumentError: not a pair (low, high) of one finite value per channel, with low below high.
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
    """Return a list of numbers in float64, or an empty tensor if it is something else, so that its length is wrong."""
    try:
        return torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (RuntimeError, TypeError, ValueError):
        return torch.zeros(0, dtype=torch.float64, device="cpu")


EVERY_INPUT, IN_RANGE = "every input", "pixels in range"
"""The inputs for which a stem can be exact."""

RESIZED_SCOPE = "{} whose patches of {} pixels are resized one by one (approximate if an image is resized as a whole)"
"""The inputs for which a transplant with resized filters computes what the source does."""

RESIZED_NOTE = (
    "Its filters were resized from patches of {0} pixels by pseudo-inverse; the grid and the position embedding are "
    "the source's."
)
"""What to tell the user about a source of another patch size."""


@dataclass(frozen=True)
class LayerReport:
    """What one layer carries."""

    carries: str
    """``pixels``, ``averages`` of pixels, or ``embedding``: the share of the embedding from the pixels under it."""
    count: int
    """Values carried at each position."""
    width: int
    """Channels of the layer."""
    both_signs: bool
    """Whether each value has two channels and therefore needs no floor."""

    @property
    def used(self) -> int:
        """Channels that carry something."""
        return 2 * self.count if self.both_signs else self.count

    def __str__(self) -> str:
        """Describe the layer in a few words."""
        sign = "with both signs" if self.both_signs else "shifted"
        return f"carries {self.count} values of the {self.carries} {sign} in {self.used} of {self.width} channels"


@dataclass(frozen=True)
class TransplantReport:
    """What a transplant preserves."""

    layers: tuple[LayerReport, ...]
    """One record for each layer before the last convolution."""
    resized_from: int | None = None
    """Patch size of the source if its filters were resized first; the report is then about the resized filters."""
    restrided: tuple[int, int] | None = None
    """Patch size and stride, if they differ."""
    border: str = ZERO
    """What patches that overlap the image border see beyond it: ``ZERO`` or ``DARK``."""

    @property
    def scope(self) -> str:
        """The inputs for which the model computes what its source does, up to rounding.

        ``EVERY_INPUT`` if all layers carry both signs, else ``IN_RANGE``; with resized filters, ``RESIZED_SCOPE``. At
        another stride the model is compared with the source at this stride.
        """
        inputs = EVERY_INPUT if all(layer.both_signs for layer in self.layers) else IN_RANGE
        return inputs if self.resized_from is None else RESIZED_SCOPE.format(inputs, self.resized_from)

    def outcome(self) -> str:
        """Return what a user must know, in a few sentences."""
        resized = "" if self.resized_from is None else " " + RESIZED_NOTE.format(self.resized_from)
        tokens = f" {tokens_in_words(*self.restrided, self.border)}" if self.restrided else ""
        return f"The transplant is exact for {self.scope}, up to rounding.{resized}{tokens}"

    def summary(self) -> str:
        """Return the report as one paragraph, with a clause for each layer."""
        layers = "; ".join(f"layer {index} {layer}" for index, layer in enumerate(self.layers))
        return f"{self.outcome()} In detail, {layers}." if layers else self.outcome()


def carried_by(stem: StemSpec, embed_dim: int, in_chans: int = 3, patch_size: int | None = None) -> TransplantReport:
    """Return what the layers of a stem carry of any patch embedding of this size.

    Args:
        stem: the stem.
        embed_dim: width of the trunk.
        in_chans: input channels.
        patch_size: of the patch embedding; default: the stem's stride.

    Raises:
        ArgumentError: the stem is too narrow; the message says how many channels it needs.
    """
    patch = patch_size or stem.patch_size
    spread = stem.patch_size // patch
    *more, last = [n for n in range(len(stem.strides)) if not spread % math.prod(stem.strides[:n])] or [0]
    for averaging in more:  # as few layers as possible
        with suppress(ArgumentError):
            return _report(stem, embed_dim, in_chans, patch, averaging)
    return _report(stem, embed_dim, in_chans, patch, last)


def _report(stem: StemSpec, embed_dim: int, in_chans: int, patch: int, averaging: int) -> TransplantReport:
    """Return the report if the first ``averaging`` layers average pixels."""
    pixels, embedding = _values(stem, embed_dim, in_chans, patch, averaging)
    fits = [width >= 2 * values for width, values in zip(stem.channels, embedding, strict=True)]
    layers: list[LayerReport] = []
    carries = "pixels"
    for index, width in enumerate(stem.channels):
        if width < 2 * pixels[index] and all(fits[index:]):
            carries = "embedding"  # from here on, since single pixels are lost
        count = pixels[index] if carries == "pixels" else embedding[index]
        if width < count:
            raise ArgumentError(_too_narrow(stem, index, pixels, embedding))
        what = "averages" if carries == "pixels" and index < averaging else carries
        layers.append(LayerReport(what, count, width, width >= 2 * count))
    restrided = None if stem.patch_size == patch else (patch, stem.patch_size)
    padded = layers[-1:] if reads_last(stem, patch) else layers[-2:-1]  # padding zeros are x = 0, or x = low if shifted
    border = ZERO if patch <= stem.patch_size or all(layer.both_signs for layer in padded) else DARK
    return TransplantReport(tuple(layers), restrided=restrided, border=border)


def reach(stem: StemSpec, patch: int) -> list[int]:
    """Return the pixels that a position of each layer covers along each axis.

    If patches overlap, a position of the last layer covers a whole patch, unless the last convolution reads it.
    """
    sides = [math.prod(stem.strides[: index + 1]) for index in range(len(stem.strides))]
    return sides if patch <= stem.patch_size or reads_last(stem, patch) else [*sides[:-1], patch]


def _values(stem: StemSpec, embed_dim: int, in_chans: int, patch: int, averaging: int) -> tuple[list[int], list[int]]:
    """Return, for each layer, the pixel values under a position and the embedding's values per position."""
    sides = reach(stem, patch)
    averaged = [math.prod(stem.strides[: min(index + 1, averaging)]) for index in range(len(sides))]
    pixels = [in_chans * (side // block) ** 2 for side, block in zip(sides, averaged, strict=True)]
    return pixels, [embed_dim * (max(patch, stem.patch_size) // side) ** 2 for side in sides]


def _too_narrow(stem: StemSpec, layer: int, pixels: list[int], embedding: list[int]) -> str:
    pairs = list(zip(pixels, embedding, strict=True))
    always, in_range = [2 * min(pair) for pair in pairs], [min(p, 2 * e) for p, e in pairs]
    return (
        f"the stem {list(stem.channels)} is too narrow for this patch embedding: layer {layer} has "
        f"{stem.channels[layer]} channels for {pixels[layer]} pixel values (or twice {embedding[layer]} embedding "
        f"values). With these strides, {always} and wider stems are exact for every input, {in_range} for pixels in "
        "range"
    )
