"""The stem as a frozen record, and the checks that all records share. No torch in this file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from convstem.errors import ArgumentError, ArgumentTypeError

NORMS = ("batchnorm2d", "frozen_bn", "layernorm2d", "none")
"""Normalisation layers a stem can use; ``frozen_bn`` is BatchNorm with fixed statistics and weights."""

ACTS = ("gelu", "relu", "silu")
"""Activations a stem can use, by timm's names."""


COARSEST = 32
"""Stride of the feature pyramid's last level; levels coarser than the patch size are pooled."""


def choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ``ArgumentError`` with the sorted choices unless ``value`` is one of them."""
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(sorted(choices))}; got {value!r}")


def check_arguments(owner: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise ``ArgumentTypeError`` with the nearest known name unless ``owner`` takes all these arguments."""
    unknown = next((name for name in names if name not in known), None)
    if unknown is None:
        return
    import difflib  # only when a name is wrong

    near = difflib.get_close_matches(unknown, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(known))}"
    raise ArgumentTypeError(f"{owner} takes no argument {unknown!r}; {hint}")


def positive_ints(name: str, values: object) -> tuple[int, ...]:
    """Return ``values`` (an int or a sequence of ints) as a tuple; raise ``ArgumentError`` unless all are positive."""
    items = (values,) if isinstance(values, int) else values
    if isinstance(items, str) or not isinstance(items, Sequence) or not items:
        raise ArgumentError(f"{name} must be a non-empty list of positive integers; got {values!r}")
    if any(not isinstance(item, int) or isinstance(item, bool) or item < 1 for item in items):
        raise ArgumentError(f"{name} must be a non-empty list of positive integers; got {list(items)!r}")
    return tuple(items)


@dataclass(frozen=True)
class StemLayer:
    """One convolution of a stem; norm and activation follow all but the last."""

    in_chans: int
    channels: int
    kernel_size: int
    stride: int
    height: int
    """Of its feature map, in pixels."""
    width: int

    @property
    def padding(self) -> int:
        """Pixels of padding on each side: none if kernel and stride are equal, as in a patch embedding."""
        return 0 if self.kernel_size == self.stride else (self.kernel_size - 1) // 2

    @property
    def map_size(self) -> str:
        """Height and width of the feature map, for tables."""
        return f"{self.height}x{self.width}"


@dataclass(frozen=True)
class StemSpec:
    """A convolutional stem: layers of convolution, norm and activation, then a convolution to ``embed_dim``.

    Args:
        channels: output channels of each layer but the last convolution.
        strides: stride of each layer, 1 or 2 for 3x3 kernels; default: 2 for every layer.
        kernel_sizes: kernel size of each layer, odd or equal to the stride; default: 3 for every layer. Padding is
            ``(kernel - 1) // 2``, so that sizes round up. If the kernel equals the stride there is no padding, and
            sizes round down.
        norm: ``batchnorm2d``, ``frozen_bn``, ``layernorm2d`` or ``none``.
        act: ``relu``, ``gelu`` or ``silu``.
        bias: whether convolutions before a norm have a bias; the others always do.
        last_kernel_size: of the last convolution, which has neither norm nor activation.
        last_stride: of the last convolution.

    Raises:
        ArgumentError: a value is out of range or the three lists differ in length.

    Source: Xiao et al., arXiv 2106.14881, section 3.1; torchvision ``ConvStemConfig``.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...] = ()
    kernel_sizes: tuple[int, ...] = ()
    norm: str = "batchnorm2d"
    act: str = "relu"
    bias: bool = False
    last_kernel_size: int = 1
    last_stride: int = 1

    def __post_init__(self) -> None:
        """Normalise lists to tuples and validate."""
        channels = positive_ints("stem_channels", self.channels)
        strides = positive_ints("stem_strides", self.strides or (2,) * len(channels))
        kernels = positive_ints("stem_kernel_sizes", self.kernel_sizes or (3,) * len(channels))
        if not len(channels) == len(strides) == len(kernels):
            raise ArgumentError(
                f"a stem needs as many strides and kernel sizes as channels; got {len(channels)} channels "
                f"{list(channels)}, {len(strides)} strides {list(strides)} and {len(kernels)} kernel sizes"
            )
        for name in ("last_kernel_size", "last_stride"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ArgumentError(f"stem_{name} must be a positive integer; got {getattr(self, name)!r}")
        last = (self.last_stride, self.last_kernel_size)
        for stride, kernel in (*zip(strides, kernels, strict=True), last):
            if kernel != stride and (kernel % 2 == 0 or stride > (kernel + 1) // 2):
                raise ArgumentError(
                    f"a stem layer needs an odd kernel size k and a stride of at most (k + 1) / 2, so that no pixel "
                    f"is skipped, or a kernel size equal to the stride; got kernel size {kernel} with stride {stride}"
                )
        choice("stem_norm", self.norm, NORMS)
        choice("stem_act", self.act, ACTS)
        object.__setattr__(self, "channels", channels)
        object.__setattr__(self, "strides", strides)
        object.__setattr__(self, "kernel_sizes", kernels)
        object.__setattr__(self, "bias", self.bias or self.norm == "none")

    @property
    def patch_size(self) -> int:
        """Pixels per token along each axis: the product of all strides, including ``last_stride``."""
        return math.prod(self.strides) * self.last_stride

    @property
    def fits_torchvision(self) -> bool:
        """Whether torchvision can express the stem; see ``beyond_torchvision``."""
        return not self.beyond_torchvision

    @property
    def beyond_torchvision(self) -> str:
        """What torchvision's ``ConvStemConfig`` and its final 1x1 cannot express, in words; empty if nothing."""
        if self.norm == "layernorm2d" or self.bias != (self.norm == "none"):
            return f"stem_norm={self.norm!r}, stem_bias={self.bias}"
        if (self.last_kernel_size, self.last_stride) != (1, 1):
            return f"stem_last_kernel_size={self.last_kernel_size}, stem_last_stride={self.last_stride}"
        even = any(kernel % 2 == 0 for kernel in self.kernel_sizes)
        return f"stem_kernel_sizes={list(self.kernel_sizes)}, and even ones are padded there" if even else ""

    def layers(self, img_size: int | Sequence[int] | None = None, in_chans: int = 3) -> tuple[StemLayer, ...]:
        """Return the layers before the last convolution, in order.

        Args:
            img_size: height and width in pixels, or one number; default: one patch.
            in_chans: input channels of the first layer.
        """
        return self._chain(img_size, in_chans, 0)[:-1]

    def last_layer(self, embed_dim: int, img_size: int | Sequence[int] | None = None) -> StemLayer:
        """Return the last convolution, which makes the tokens; arguments as in ``layers``."""
        return self._chain(img_size, 0, embed_dim)[-1]

    def grid(self, img_size: Sequence[int]) -> tuple[int, int]:
        """Return the rows and columns of tokens for an image [height, width] in pixels."""
        last = self.last_layer(0, img_size)
        return last.height, last.width

    def _chain(self, img_size: int | Sequence[int] | None, in_chans: int, embed_dim: int) -> tuple[StemLayer, ...]:
        size = img_size or self.patch_size
        height, width = (size, size) if isinstance(size, int) else size
        kernels, strides = (*self.kernel_sizes, self.last_kernel_size), (*self.strides, self.last_stride)
        layers: list[StemLayer] = []
        for channels, kernel, stride in zip((*self.channels, embed_dim), kernels, strides, strict=True):
            more = 0 if kernel == stride else stride - 1  # with padding, sizes round up
            height, width = (height + more) // stride, (width + more) // stride
            layers.append(StemLayer(in_chans, channels, kernel, stride, height, width))
            in_chans = channels
        return tuple(layers)

    def levels(self, embed_dim: int, coarsest: int) -> list[tuple[int, int]]:
        """Return stride and channels of every map of the feature pyramid, finest first.

        Maps below the patch size are the stem's, the last of each stride; the others are the trunk's.

        Args:
            embed_dim: width of the trunk.
            coarsest: stride of the last level.
        """
        inside: dict[int, int] = {}
        stride = 1
        for step, channels in zip(self.strides, self.channels, strict=True):
            stride *= step
            inside[stride] = channels
        found = [(stride, channels) for stride, channels in inside.items() if 1 < stride < self.patch_size]
        strides = [self.patch_size]
        while strides[-1] * 2 <= coarsest:
            strides.append(strides[-1] * 2)
        return [*found, *((stride, embed_dim) for stride in strides)]

    @property
    def layer_title(self) -> str:
        """The parts of a layer, for tables."""
        return " + ".join(["conv", *(name for name in (self.norm, self.act) if name != "none")])

    @property
    def model_args(self) -> dict[str, Any]:
        """The keyword arguments, plain JSON data, that build this stem in every timm entrypoint."""
        return {
            "stem_channels": list(self.channels),
            "stem_strides": list(self.strides),
            "stem_kernel_sizes": list(self.kernel_sizes),
            "stem_norm": self.norm,
            "stem_act": self.act,
            "stem_bias": self.bias,
            "stem_last_kernel_size": self.last_kernel_size,
            "stem_last_stride": self.last_stride,
        }


def default_stem(patch_size: int, embed_dim: int, in_chans: int = 3, stride: int | None = None) -> StemSpec:
    """Return the narrowest stem of stride-2 layers that keeps a patch embedding's function for every input.

    A position of layer k covers ``in_chans * 4 ** k`` pixel values. Each takes two channels, one per sign; the last
    layer never needs more than the embedding with both signs. One to three input channels share a stem, so that RGB
    weights also load for fewer channels. At patch 32 such a stem would cost more than a small trunk: there, after its
    first layer, an RGB stem carries each pixel once, shifted, and is exact for pixels in range.

    With a stride below the patch size, the last layer reads the whole patch at every position with one wide kernel.
    With a stride above, the stem is the one for a patch of this size, up to 32; extra layers in front carry averages of
    pixels.

    Args:
        patch_size: a power of two, in pixels.
        embed_dim: width of the trunk.
        in_chans: input channels.
        stride: pixels from token to token, a power of two; default: the patch size.

    Raises:
        ArgumentError: ``patch_size`` is not a power of two.
    """
    depth = patch_size.bit_length() - 1 if isinstance(patch_size, int) else 0  # a row may hold anything
    if depth < 1 or 2**depth != patch_size:
        raise ArgumentError(
            f"a stem of stride-2 layers needs a patch size that is a power of two (2, 4, 8, 16, 32); got {patch_size}: "
            "choose one of these, or pass a stem whose strides multiply to it, such as strides (2, 7) and kernel sizes "
            "(3, 13) for 14"
        )
    steps = (stride or patch_size).bit_length() - 1
    front = max(steps - max(depth, 5), 0)  # layers that average
    reads = max(patch_size >> steps, 1)  # positions per axis that the last layer reads; above 1 if patches overlap
    depth = steps - front if reads == 1 else steps + 1
    lean = depth > 4 and in_chans <= 3
    pixels = [max(in_chans, 3) * 4**layer for layer in range(1, depth)]
    channels = [count if lean and layer else 2 * count for layer, count in enumerate(pixels)]
    channels.append(2 * min(max(in_chans, 3) * max(patch_size, 2**depth) ** 2, embed_dim))
    channels = [*channels[:1] * front, *channels]
    if reads == 1:
        return StemSpec(tuple(channels), norm="none")
    return StemSpec(tuple(channels), (2,) * steps + (1,), (3,) * steps + (2 * reads - 1,), norm="none")


def check_stem_patch(stem: StemSpec, patch_size: int) -> None:
    """Raise ``ArgumentError`` unless the product of the stem's strides is the patch size."""
    if stem.patch_size != patch_size:
        raise ArgumentError(
            f"the product of stem_strides{last_stride_in_words(stem)} must equal patch_size; {list(stem.strides)} "
            f"multiply to {stem.patch_size}, patch_size is {patch_size}: change one of them"
        )


def last_stride_in_words(stem: StemSpec) -> str:
    """Return the words of a message for the last convolution's stride; empty if it is 1."""
    return "" if stem.last_stride == 1 else f" and stem_last_stride={stem.last_stride}"


def check_img_size(
    img_size: tuple[int, int], patch_size: int, name: str = "img_size", remedy: str = "dynamic_img_size=True"
) -> None:
    """Raise ``ArgumentError`` unless height and width in pixels are positive multiples of the patch size.

    Args:
        img_size: height and width.
        patch_size: of the stem.
        name: the argument's name.
        remedy: what to pass for images of any size.
    """
    if any(size < 1 or size % patch_size for size in img_size):
        low = tuple(max(size // patch_size, 1) * patch_size for size in img_size)
        high = tuple(-(-max(size, 1) // patch_size) * patch_size for size in img_size)
        raise ArgumentError(
            f"{name} must be a multiple of the patch size {patch_size}; got {img_size[0]}x{img_size[1]}: use "
            f"{low[0]}x{low[1]} or {high[0]}x{high[1]}, or pass {remedy} to accept any size"
        )


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raise ``ArgumentError`` unless ``embed_dim`` is a multiple of ``num_heads``."""
    if embed_dim % num_heads:
        raise ArgumentError(
            f"embed_dim must be a multiple of num_heads; got embed_dim {embed_dim}, num_heads {num_heads}"
        )
