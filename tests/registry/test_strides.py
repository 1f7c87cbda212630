"""The possible strides, and those that a stem with given weights can have."""

import pytest

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemSpec
from convstem.registry.strides import at_stride, check_reads, check_stride, tokens_in_words


def test_strides_that_there_are() -> None:
    assert check_stride(None, 14) == 14
    assert [check_stride(stride, 16, (64, 128)) for stride in (1, 2, 4, 8, 16, 32, 64)] == [1, 2, 4, 8, 16, 32, 64]
    assert [check_stride(stride, 14) for stride in (7, 28)] == [7, 28]


@pytest.mark.parametrize("stride", [0, -8, 8.0, True, "8", [8]])
def test_no_stride(stride: object) -> None:
    with pytest.raises(ArgumentError, match="stride is the token spacing in pixels, a whole number of at least 1; got"):
        check_stride(stride, 16)


@pytest.mark.parametrize(("stride", "patch", "near"), [(24, 16, "8, 16, 32, 64"), (5, 16, "8"), (8, 14, "7, 14, 28")])
def test_no_power_of_two(stride: int, patch: int, near: str) -> None:
    with pytest.raises(
        ArgumentError, match=f"such as {near}.*; got stride={stride} for patches of {patch} pixels: choose"
    ):
        check_stride(stride, patch)


def test_larger_than_the_image() -> None:
    with pytest.raises(ArgumentError, match="stride=64 is larger than the image, 224x32 pixels: pass a smaller"):
        check_stride(64, 16, (224, 32))


def test_the_last_layer_alone_may_change() -> None:
    stem = StemSpec((24, 48, 96), (2, 2, 2))
    assert at_stride(stem, 8) is stem
    assert at_stride(stem, 4) == StemSpec((24, 48, 96), (2, 2, 1))
    assert at_stride(at_stride(stem, 4), 8) == stem
    for wrong in (16, 2, 1):
        with pytest.raises(ArgumentError, match=rf"tokens every 4 or 8 pixels; got stride={wrong}: load the plain"):
            at_stride(stem, wrong)
    with pytest.raises(
        ArgumentError, match=r"strides \[2, 2, 1\] keeps its weights .* every 4 or 8 pixels; got stride=2"
    ):
        at_stride(at_stride(stem, 4), 2)


def test_in_words() -> None:
    assert tokens_in_words(16, 16) == ""
    assert "stride = 4, on the image with 12 more pixels at its right and lower border, all zero" in tokens_in_words(
        16, 4
    )
    assert "on the image averaged over squares of 4 x 4 pixels" in tokens_in_words(16, 64)


@pytest.mark.parametrize(("kernel", "enough"), [(7, True), (5, False)])
def test_a_layer_of_stride_2_reads_two_patches_by_a_kernel_of_7(kernel: int, enough: bool) -> None:
    stem = StemSpec((24, 48), (2, 2), kernel_sizes=(3, kernel))
    if enough:
        check_reads(stem, 8)
        return
    with pytest.raises(ArgumentError, match="needs a kernel of 7; got 5: pass kernel_sizes"):
        check_reads(stem, 8)
