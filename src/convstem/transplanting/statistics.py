"""Second-order statistics of image patches: measured on images, or a 1/f^2 prior when there are none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from convstem.errors import ArgumentError

COLOUR_CORRELATION = 0.9
"""Correlation of two colours at the same pixel, in the prior."""


PIXEL_VARIANCE = 1.25
"""Variance of a normalised pixel, in the prior (natural images under ImageNet's mean and std)."""


WHITE_FRACTION = 1e-3
"""Share of white noise in the prior's variance, so that no direction is free of it."""


LOWEST_FREQUENCY = 0.5
"""Where the prior's 1/f^2 spectrum flattens, in cycles per eight patches."""


CHUNK = 8192
"""Patches converted to float64 at a time."""


PIXEL_FLOOR = 1e-6
"""White noise added to a covariance, as a share of its mean variance: below the 2e-5 that 8-bit rounding adds
to an ImageNet pixel, and enough to invert the covariance of a handful of images."""


@dataclass(frozen=True, eq=False)
class PatchStatistics:
    """Mean and covariance of the p x p patches of normalised images.

    Args:
        mean: [in_chans, p, p], float64.
        covariance: [in_chans * p * p, in_chans * p * p], float64, index order (channel, y, x).

    Raises:
        ArgumentError: the two shapes do not belong together, or a value is NaN or infinite.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        """Validate shapes and values."""
        size = self.mean.numel()
        square = self.mean.ndim == 3 and self.mean.shape[1] == self.mean.shape[2]
        if not square or self.covariance.shape != (size, size):
            raise ArgumentError(
                "patch statistics need a mean [in_chans, p, p] and a covariance "
                "[in_chans * p * p, in_chans * p * p]; "
                f"got shapes {list(self.mean.shape)} and {list(self.covariance.shape)}"
            )
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise ArgumentError("patch statistics must be finite; got NaN or infinity: check the images measured")

    @property
    def in_chans(self) -> int:
        """Image channels."""
        return self.mean.shape[0]

    @property
    def patch_size(self) -> int:
        """Pixels along each side of a patch."""
        return self.mean.shape[1]


@lru_cache(maxsize=4)
def prior_statistics(patch_size: int, in_chans: int = 3) -> PatchStatistics:
    """Return the statistics of a 1/f^2 power spectrum with zero mean: natural images without any image.

    Args:
        patch_size: pixels along each side of a patch.
        in_chans: image channels, correlated by ``COLOUR_CORRELATION``.

    Source: Field, "Relations between the statistics of natural images...", J. Opt. Soc. Am. A 4 (1987).
    """
    colour = torch.full((in_chans, in_chans), COLOUR_CORRELATION, dtype=torch.float64).fill_diagonal_(1)
    covariance = PIXEL_VARIANCE * torch.kron(colour, _spatial_correlation(patch_size))
    covariance.diagonal().add_(PIXEL_VARIANCE * WHITE_FRACTION)
    return PatchStatistics(torch.zeros(in_chans, patch_size, patch_size, dtype=torch.float64), covariance)


def _spatial_correlation(patch_size: int) -> Tensor:
    """Return the correlation [p * p, p * p] of two pixels of a colour, on a torus of eight patches."""
    size = 8 * patch_size
    frequency = torch.fft.fftfreq(size, dtype=torch.float64) * size
    power = 1 / (frequency[:, None] ** 2 + frequency[None] ** 2 + LOWEST_FREQUENCY**2)
    correlation = torch.fft.ifft2(power).real
    position = torch.arange(patch_size)
    lag = (position[:, None] - position[None]) % size
    blocks: Tensor = correlation[lag[:, None, :, None], lag[None, :, None, :]] / correlation[0, 0]
    return blocks.reshape(patch_size**2, patch_size**2)


def image_statistics(batches: Iterable[Tensor], patch_size: int) -> PatchStatistics:
    """Measure the statistics of every patch of some normalised images and of their mirror images.

    Args:
        batches: tensors [N, in_chans, H, W], seen once each; H and W may differ between batches, and pixels
            right of and below the last whole patch are left out.
        patch_size: pixels along each side of a patch.

    Raises:
        ArgumentError: there is no whole patch, a batch has not four dimensions, or batches differ in channels.
    """
    total, outer, count, in_chans = torch.zeros(0), torch.zeros(0), 0, 0
    for batch in batches:
        if batch.ndim != 4 or (count and batch.shape[1] != in_chans):
            expected = f"[N, {in_chans or 'in_chans'}, H, W]"
            raise ArgumentError(f"image statistics need tensors {expected}; got {list(batch.shape)}")
        for patches in _patches(batch, patch_size):
            if not count:
                in_chans, size = batch.shape[1], patches.shape[1]
                total, outer = patches.new_zeros(size), patches.new_zeros(size, size)
            total += patches.sum(0)
            outer.addmm_(patches.T, patches)
            count += len(patches)
    if not count:
        raise ArgumentError(f"no image holds a whole {patch_size} x {patch_size} patch: pass larger images")
    mean = total / count
    covariance = outer / count - mean[:, None] * mean[None]
    return PatchStatistics(mean.view(in_chans, patch_size, patch_size), covariance)


def _patches(batch: Tensor, patch_size: int) -> Iterable[Tensor]:
    """Yield float64 chunks [N, in_chans * p * p] of a batch's patches and of its mirror image's."""
    if min(batch.shape[2:]) < patch_size:
        return
    flat = F.unfold(batch.detach().cpu().float(), patch_size, stride=patch_size).transpose(1, 2)
    for chunk in torch.split(flat.reshape(-1, flat.shape[-1]), CHUNK):
        patches = chunk.double().view(-1, batch.shape[1], patch_size, patch_size)
        yield patches.flatten(1)
        yield patches.flip(-1).flatten(1)


def floored(covariance: Tensor) -> Tensor:
    """Return a covariance with ``PIXEL_FLOOR`` of white noise added, hence positive definite."""
    result = covariance.clone()
    result.diagonal().add_(PIXEL_FLOOR * covariance.diagonal().mean() + torch.finfo(covariance.dtype).tiny)
    return result


def sub_covariance(statistics: PatchStatistics, size: int) -> Tensor:
    """Return the covariance [in_chans * size * size, same], averaged over the blocks that tile a patch."""
    in_chans, tiles = statistics.in_chans, statistics.patch_size // size
    blocks = statistics.covariance.view(in_chans, tiles, size, tiles, size, in_chans, tiles, size, tiles, size)
    summed = blocks.new_zeros(in_chans, size, size, in_chans, size, size)
    for row in range(tiles):
        for column in range(tiles):
            summed += blocks[:, row, :, column, :, :, row, :, column]
    return summed.view(in_chans * size**2, in_chans * size**2) / tiles**2


def sub_mean(statistics: PatchStatistics, size: int) -> Tensor:
    """Return the mean [in_chans, size, size], averaged over the blocks that tile a patch."""
    in_chans, tiles = statistics.in_chans, statistics.patch_size // size
    return statistics.mean.view(in_chans, tiles, size, tiles, size).mean((1, 3))
