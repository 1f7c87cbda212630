"""A patch embedding carried at a stride other than its patch size is compared with a convolution of that stride."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemSpec, default_stem
from convstem.registry.strides import DARK, ZERO
from convstem.stem.carried import EVERY_INPUT, IN_RANGE, carried_by
from convstem.stem.carry import MARGIN, carry
from tests.support.stem_transplants import LOW, build_stem, filters, noise, white_images

DENSER = [
    # patch, stride, embed_dim, in_chans
    (16, 8, 48, 3),
    (16, 8, 900, 3),  # embed_dim exceeds a patch's pixels, so the last layer carries the pixels
    (16, 4, 20, 3),
    (16, 2, 8, 1),
    (8, 1, 8, 3),
    (4, 2, 40, 5),
    (2, 1, 8, 3),
    (32, 8, 16, 3),
]
COARSER = [(4, 8, 40, 3), (2, 4, 40, 3), (2, 8, 100, 2), (16, 32, 20, 3), (8, 64, 8, 3), (16, 128, 8, 3)]


def stem_of(
    patch: int, stride: int, embed_dim: int, in_chans: int, norm: str = "none", spec: StemSpec | None = None
) -> tuple[nn.Sequential, Tensor, Tensor]:
    weight, bias = filters(embed_dim, in_chans, patch)
    own = default_stem(patch, embed_dim, in_chans, stride)
    spec = spec or StemSpec(own.channels, own.strides, own.kernel_sizes, norm)
    state, report = carry(weight, bias, spec, [LOW] * in_chans, dtype=torch.float64, stride=stride)
    assert report == carried_by(spec, embed_dim, in_chans, patch)
    assert report.restrided == (patch, stride)
    return build_stem(state, spec), weight, bias


def error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float(((got - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("norm", ["none", "batchnorm2d"])
@pytest.mark.parametrize(("patch", "stride", "embed_dim", "in_chans"), DENSER)
def test_denser_tokens_are_those_of_a_convolution_with_this_stride(
    patch: int, stride: int, embed_dim: int, in_chans: int, norm: str
) -> None:
    stem, weight, bias = stem_of(patch, stride, embed_dim, in_chans, norm)
    images = noise(in_chans, max(3 * patch, 32))
    got, inside = stem(images), F.conv2d(images, weight, bias, stride)
    assert got.shape[2:] == (images.shape[2] // stride, images.shape[3] // stride)
    rows, columns = inside.shape[2:]
    assert rows < got.shape[2]
    assert error(got[..., :rows, :columns], inside) < 1e-13
    more = patch - stride
    assert error(got, F.conv2d(F.pad(images, (0, more, 0, more)), weight, bias, stride)) < 1e-13
    apart = patch // stride  # every apart-th token is one of the original patch embedding's
    assert error(got[..., ::apart, ::apart][..., :2, :2], F.conv2d(images, weight, bias, patch)[..., :2, :2]) < 1e-13
    before = F.conv2d(F.pad(images, (more, 0, more, 0)), weight, bias, stride)  # negative control: shifted patches
    assert error(got, before) > 0.1


@pytest.mark.parametrize(("patch", "stride", "embed_dim", "in_chans"), DENSER)
def test_default_stems_for_denser_tokens_are_exact_for_every_input(
    patch: int, stride: int, embed_dim: int, in_chans: int
) -> None:
    spec = default_stem(patch, embed_dim, in_chans, stride)
    report = carried_by(spec, embed_dim, in_chans, patch)
    assert (report.scope, report.border) == (EVERY_INPUT, ZERO)
    assert (spec.patch_size, len(spec.channels)) == (stride, stride.bit_length())


@pytest.mark.parametrize("norm", ["none", "batchnorm2d"])
def test_patch_32_at_stride_16_sees_the_darkest_pixels_beyond_the_border(norm: str) -> None:
    stem, weight, bias = stem_of(32, 16, 400, 3, norm)
    report = carried_by(default_stem(32, 400, 3, 16), 400, 3, 32)
    assert (report.scope, report.border) == (IN_RANGE, DARK)
    assert "lower border, all as dark as the stem takes." in report.outcome()
    images = white_images(3, 64)
    got = stem(images)
    for fill, bound in ((LOW - MARGIN, 0.0), (0.0, 1e-2)):
        expected = F.conv2d(F.pad(images, (0, 16, 0, 16), value=fill), weight, bias, 16)
        assert bound <= error(got, expected) < (1e-13 if bound == 0 else 1)


@pytest.mark.parametrize("norm", ["none", "batchnorm2d"])
@pytest.mark.parametrize(("patch", "stride", "embed_dim", "in_chans"), COARSER)
def test_coarser_tokens_are_those_of_averaged_images(
    patch: int, stride: int, embed_dim: int, in_chans: int, norm: str
) -> None:
    stem, weight, bias = stem_of(patch, stride, embed_dim, in_chans, norm)
    images = white_images(in_chans, 2 * stride)
    averaged = F.avg_pool2d(images, stride // patch)
    assert error(stem(images), F.conv2d(averaged, weight, bias, patch)) < 1e-12
    picked = images[..., :: stride // patch, :: stride // patch]  # negative control: one pixel of each square
    assert error(stem(images), F.conv2d(picked, weight, bias, patch)) > 0.1


def test_a_stem_averages_in_as_many_layers_as_it_must() -> None:
    carries = {}
    for channels in ((24, 96, 384, 1536, 16), (24, 48, 192, 768, 16), (24, 24, 96, 384, 16), (6, 24, 24, 96, 384)):
        spec = StemSpec(channels, norm="none")
        stem, weight, bias = stem_of(8, 32, 8, 3, spec=spec)
        images = white_images(3, 64)
        assert error(stem(images), F.conv2d(F.avg_pool2d(images, 4), weight, bias, 8)) < 1e-12
        report = carried_by(spec, 8, 3, 8)
        carries[channels] = ([layer.carries for layer in report.layers].count("averages"), report.scope)
    assert list(carries.values()) == [(0, EVERY_INPUT), (0, IN_RANGE), (1, EVERY_INPUT), (2, EVERY_INPUT)]
    with pytest.raises(ArgumentError, match=r"\[2, 24, 24, 96, 384\] is too narrow.*layer 0 has 2 channels for 3"):
        carried_by(StemSpec((2, 24, 24, 96, 384), norm="none"), 800, 3, 8)


def test_the_last_convolution_may_read_the_patch_instead() -> None:
    """It takes half the multiply-adds of a layer with both signs of the embedding, but only timm takes such stems."""
    for patch, stride, spec, border in (
        (16, 8, StemSpec((24, 96, 384), norm="none", last_kernel_size=3), ZERO),
        (16, 4, StemSpec((24, 96), last_kernel_size=7), ZERO),
        (16, 8, StemSpec((24, 96), last_kernel_size=7, last_stride=2), ZERO),
        (16, 8, StemSpec((24, 48, 192), last_kernel_size=3), DARK),
    ):
        stem, weight, bias = stem_of(patch, stride, 400, 3, spec=spec)
        report = carried_by(spec, 400, 3, patch)
        assert (report.border, {layer.carries for layer in report.layers}) == (border, {"pixels"})
        images, more = white_images(3, 48), patch - stride
        fill = 0.0 if border == ZERO else LOW - MARGIN
        expected = F.conv2d(F.pad(images, (0, more, 0, more), value=fill), weight, bias, stride)
        assert error(stem(images), expected) < 1e-13


def test_the_default_stems_of_strides() -> None:
    shapes = {
        (16, 8): ((24, 96, 384, 768), (2, 2, 2, 1), (3, 3, 3, 3)),
        (16, 4): ((24, 96, 768), (2, 2, 1), (3, 3, 7)),
        (16, 1): ((768,), (1,), (31,)),
        (16, 32): (default_stem(32, 384).channels, (2,) * 5, (3,) * 5),
        (16, 64): ((24, *default_stem(32, 384).channels), (2,) * 6, (3,) * 6),
        (32, 16): (default_stem(32, 384).channels, (2, 2, 2, 2, 1), (3,) * 5),
    }
    for (patch, stride), (channels, strides, kernels) in shapes.items():
        assert default_stem(patch, 384, 3, stride) == StemSpec(channels, strides, kernels, norm="none")
    assert default_stem(16, 384, 3, 16) == default_stem(16, 384)


def test_errors() -> None:
    weight, bias = filters(8, 3, 16)
    dense = default_stem(16, 8, 3, 4)
    carry(weight, bias, dense, stride=4)  # the valid neighbour
    with pytest.raises(ArgumentError, match=r"patches of 16 pixels overlap, .*needs a kernel of 7; got 3: pass"):
        carry(weight, bias, StemSpec(dense.channels, dense.strides, norm="none"), stride=4)
    with pytest.raises(ArgumentError, match=r"\[2, 2, 1\] multiply to 4, patch_size is 16: change one"):
        carry(weight, bias, dense)
    with pytest.raises(ArgumentError, match=r"multiply to 4, patch_size is 8"):
        carry(weight, bias, dense, stride=8)
