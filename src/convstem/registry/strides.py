"""Strides other than the source's patch size: which are possible, and what their tokens are. No torch in this file.

Below the patch size the patches overlap; above it each token sees averages of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemSpec

ZERO, DARK = "zero", "as dark as the stem takes"
"""What overlapping patches see beyond the image, after normalisation."""


def check_stride(stride: object, patch_size: int, img_size: Sequence[int] | None = None) -> int:
    """Return the stride, in pixels from token to token, that a caller or a config gives.

    Args:
        stride: the given value; None for the patch size.
        patch_size: of the source.
        img_size: height and width, if the model has a fixed size.

    Raises:
        ArgumentError: not a whole number, not the patch size times or divided by a power of two, or larger than the
            image.
    """
    if stride is None:
        return patch_size
    if not isinstance(stride, int) or isinstance(stride, bool) or stride < 1:
        raise ArgumentError(f"stride is the token spacing in pixels, a whole number of at least 1; got {stride!r}")
    small, large = sorted((stride, patch_size))
    ratio, rest = divmod(large, small)
    if rest or ratio & (ratio - 1):
        near = [patch_size // 2, patch_size, 2 * patch_size, 4 * patch_size]
        raise ArgumentError(
            f"stride must be the patch size times or divided by a power of two, such as {', '.join(map(str, near))}; "
            f"got stride={stride} for patches of {patch_size} pixels: choose one of these"
        )
    if img_size is not None and stride > min(img_size):
        raise ArgumentError(
            f"stride={stride} is larger than the image, {img_size[0]}x{img_size[1]} pixels: pass a smaller stride, or "
            "a larger img_size"
        )
    return stride


def check_reads(stem: StemSpec, patch_size: int) -> None:
    """Raise ``ArgumentError`` unless a stem's last layer can read a whole patch at each position."""
    reads = patch_size // stem.patch_size
    needed = 2 * stem.strides[-1] * reads - 1
    if reads <= 1 or reads_last(stem, patch_size) or (stem.last_stride == 1 and stem.kernel_sizes[-1] >= needed):
        return
    raise ArgumentError(
        f"with stride {stem.patch_size}, patches of {patch_size} pixels overlap, so the stem's last layer, of stride "
        f"{stem.strides[-1]}, needs a kernel of {needed}; got {stem.kernel_sizes[-1]}: pass kernel_sizes with it, or "
        "leave out the stem"
    )


def reads_last(stem: StemSpec, patch_size: int) -> bool:
    """Return whether a stem's last convolution, and no layer before it, reads a whole patch at each position."""
    kernel, taps = stem.last_kernel_size, stem.last_stride * patch_size // stem.patch_size
    return taps > 1 and kernel % 2 == 1 and kernel >= 2 * taps - 1


def at_stride(stem: StemSpec, stride: int) -> StemSpec:
    """Return a stem of another stride with the same weight shapes: only its last strided layer changes its step.

    Args:
        stem: a stem that may have trained weights.
        stride: pixels from token to token.

    Raises:
        ArgumentError: changing this layer alone is not enough.
    """
    if stem.patch_size == stride:
        return stem
    *before, step = stem.strides
    kernel, at_end = stem.kernel_sizes[-1], stem.last_kernel_size > 1
    if at_end:
        kernel, step = stem.last_kernel_size, stem.last_stride
    finest = stem.patch_size // step
    possible = [step] if step == kernel else list(range(1, (kernel + 1) // 2 + 1))  # the strides StemSpec allows
    if stride not in [finest * times for times in possible]:
        others = [finest * times for times in possible]
        raise ArgumentError(
            f"a conv stem with strides {list(stem.strides)} keeps its weights only if the last one alone changes, to "
            f"tokens every {' or '.join(map(str, others))} pixels; got stride={stride}: load the plain (patchify) "
            "model's weights, or pass stem_channels, stem_strides and stem_kernel_sizes and train"
        )
    step = stride // finest
    return replace(stem, last_stride=step) if at_end else replace(stem, strides=(*before, step))


def tokens_in_words(patch_size: int, stride: int, border: str = ZERO) -> str:
    """Return a sentence that compares the tokens at a stride with the source's; empty if the stride is the patch size.

    Args:
        patch_size: of the source.
        stride: pixels from token to token.
        border: what overlapping patches see beyond the image.
    """
    if stride == patch_size:
        return ""
    if stride > patch_size:
        side = stride // patch_size
        return (
            f"Tokens lie {stride} pixels apart: they are the source's on the image averaged over squares of {side} x "
            f"{side} pixels."
        )
    return (
        f"Tokens lie {stride} pixels apart, and their patches of {patch_size} overlap: they are the plain model's with "
        f"patch_embed.proj.stride = {stride}, on the image with {patch_size - stride} more pixels at its right and "
        f"lower border, all {border}."
    )
