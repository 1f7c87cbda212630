"""Statistics of patches, which the transplant of a patch embedding reduces by: prior and measured ones."""

import math

import pytest
import torch
from torch import Tensor

from convstem.registry.stem_spec import StemSpec
from convstem.transplanting.statistics import (
    PatchStatistics,
    image_statistics,
    prior_statistics,
    sub_covariance,
    sub_mean,
)
from tests.support.stem_transplants import filters, relative_error, smooth_images, transplant, white_images


def test_prior_statistics() -> None:
    statistics = prior_statistics(8, 3)
    assert (statistics.in_chans, statistics.patch_size) == (3, 8)
    assert statistics.mean.eq(0).all()
    assert statistics.covariance.dtype == torch.float64
    torch.testing.assert_close(statistics.covariance, statistics.covariance.T)
    assert torch.linalg.eigvalsh(statistics.covariance)[0] > 1e-4
    pixels = statistics.covariance.view(3, 8, 8, 3, 8, 8)
    neighbour, far, other_colour = (
        pixels[0, 0, 0, 0, 0, 1],
        pixels[0, 0, 0, 0, 7, 7],
        pixels[0, 0, 0, 1, 0, 0],
    )
    assert pixels[0, 0, 0, 0, 0, 0] > neighbour > far > 0
    assert float(other_colour) == pytest.approx(0.9 * 1.25)
    assert prior_statistics(8, 3) is statistics  # computed once


def test_image_statistics_match_a_direct_count() -> None:
    images = smooth_images(2, 20, count=3)
    statistics = image_statistics([images[:1], images[1:]], 8)
    cropped = images[..., :16, :16]
    both = torch.cat([cropped, cropped.flip(-1)])
    patches = both.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 128)
    torch.testing.assert_close(statistics.mean.flatten(), patches.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics.covariance, patches.T.cov(correction=0), rtol=1e-5, atol=1e-6)


def test_sub_blocks_match_smaller_patches() -> None:
    images = smooth_images(2, 32)
    whole, quarter = image_statistics([images], 8), image_statistics([images], 4)
    torch.testing.assert_close(sub_mean(whole, 4), quarter.mean)
    outer_whole = sub_covariance(whole, 4)
    # the mean of the blocks' covariances leaves out how the blocks' means differ, which is small
    torch.testing.assert_close(outer_whole, quarter.covariance, rtol=0.05, atol=0.02)
    torch.testing.assert_close(sub_covariance(whole, 8), whole.covariance)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no image holds a whole 8 x 8 patch: pass larger images"),
        ([torch.zeros(1, 3, 7, 100)], "no image holds a whole 8 x 8 patch"),
        ([torch.zeros(3, 8, 8)], r"need tensors \[N, in_chans, H, W\]; got \[3, 8, 8\]"),
        (
            [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)],
            r"need tensors \[N, 3, H, W\]; got \[1, 1, 8, 8\]",
        ),
        ([torch.full((1, 3, 8, 8), math.nan)], "must be finite; got NaN"),
    ],
)
def test_image_statistics_errors(batches: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_statistics(batches, 8)


def test_statistics_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"got shapes \[3, 4, 4\] and \[4, 4\]"):
        PatchStatistics(torch.zeros(3, 4, 4), torch.zeros(4, 4))


def test_statistics_of_few_images_suffice() -> None:
    weight, bias = filters(20, 3, 4)
    images = smooth_images(3, 8, count=1)  # eight patches: a covariance of rank seven at most
    stem, report = transplant(StemSpec((12, 20)), weight, bias, statistics=image_statistics([images], 4))
    assert report.exact
    assert relative_error(stem, weight, bias, white_images(3, 16)) < 1e-3
