"""A patch embedding in closed form as the parameters of a conv stem, which computes the same without any training.

The layers carry the pixels to the stem's end, where the last convolution reads the embedding off. ReLU passes only
what is positive: a layer with two channels for each value carries x and -x, which loses nothing for any input; one with
a single channel carries x - low, which loses nothing for pixels from ``low`` on. Where two channels for each value of
the embedding are fewer than the pixels would take, the last layers carry the embedding instead. A narrower stem is
refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemLayer, StemSpec, check_stem_patch
from convstem.stem.norms import BN_EPS
from convstem.stem.pixels import numbers

ALGORITHM = 3
"""Raise it whenever ``carry`` gives another result: published weights are made again."""


EVERY_INPUT, IN_RANGE = "every input", "pixels in range"
"""What a stem can be exact for."""


MARGIN = 0.25
"""How far below the darkest pixel a shifted stem still is exact, in normalised units: 8/255 and more."""


PIXEL_VARIANCE, CORRELATION = 1.25, 0.9
"""Variance of a normalised pixel (natural images under ImageNet's mean and std), and its correlation with its neighbour
and with another colour: for the statistics of a BatchNorm, on which nothing depends in eval mode."""


RESIZED_NOTE = (
    "The filters were resized from patches of {0} pixels by pseudo-inverse: the function is the same where every patch "
    "of an image is resized by itself, and approximately so for photographs that are resized as a whole; the grid and "
    "the position embedding are the source's."
)
"""What there is to say about a source of another patch size."""


@dataclass(frozen=True)
class LayerReport:
    """What one layer carries."""

    carries: str
    """``pixels``, or ``embedding``: what the embedding takes from the pixels under it."""
    count: int
    """Values carried at each position."""
    width: int
    """Channels of the layer."""
    both_signs: bool
    """Whether each value has two channels, hence no lowest value."""

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
    """Patch size of the source if it was resized before the transplant: then all of this is about resized filters."""

    @property
    def scope(self) -> str:
        """For which inputs it is exact: ``EVERY_INPUT`` where all layers carry both signs, else ``IN_RANGE``."""
        return EVERY_INPUT if all(layer.both_signs for layer in self.layers) else IN_RANGE

    def outcome(self) -> str:
        """Return what a user has to know, in a sentence or two."""
        resized = "" if self.resized_from is None else RESIZED_NOTE.format(self.resized_from) + " "
        return f"{resized}The transplant is exact for {self.scope}, up to rounding."

    def summary(self) -> str:
        """Return the report as one paragraph, with a clause for each layer."""
        layers = "; ".join(f"layer {index} {layer}" for index, layer in enumerate(self.layers))
        return f"{self.outcome()} In detail, {layers}." if layers else self.outcome()


def carried_by(stem: StemSpec, embed_dim: int, in_chans: int = 3) -> TransplantReport:
    """Return what the layers of a stem would carry of any patch embedding of this size.

    Args:
        stem: the stem.
        embed_dim: width of the trunk.
        in_chans: input channels.

    Raises:
        ArgumentError: the stem is too narrow; the message has the channels that would do.
    """
    pixels, embedding = _values(stem, embed_dim, in_chans)
    fits = [width >= 2 * values for width, values in zip(stem.channels, embedding, strict=True)]
    layers: list[LayerReport] = []
    carries = "pixels"
    for index, width in enumerate(stem.channels):
        if width < 2 * pixels[index] and all(fits[index:]):
            carries = "embedding"  # from here on: nothing else is left of the pixels
        count = pixels[index] if carries == "pixels" else embedding[index]
        if width < count:
            raise ArgumentError(_too_narrow(stem, index, pixels, embedding))
        layers.append(LayerReport(carries, count, width, width >= 2 * count))
    return TransplantReport(tuple(layers))


def _values(stem: StemSpec, embed_dim: int, in_chans: int) -> tuple[list[int], list[int]]:
    """Return for each layer how many pixels a position covers, and how many values an embedding takes from them."""
    sides = [math.prod(stem.strides[: index + 1]) for index in range(len(stem.strides))]
    return [in_chans * side**2 for side in sides], [embed_dim * (stem.patch_size // side) ** 2 for side in sides]


def _too_narrow(stem: StemSpec, layer: int, pixels: list[int], embedding: list[int]) -> str:
    pairs = list(zip(pixels, embedding, strict=True))
    always, in_range = [2 * min(pair) for pair in pairs], [min(p, 2 * e) for p, e in pairs]
    return (
        f"the stem {list(stem.channels)} is too narrow for this patch embedding: layer {layer} has "
        f"{stem.channels[layer]} channels for {pixels[layer]} values of pixels (or twice {embedding[layer]} of the "
        f"embedding). With these strides, {always} and wider stems are exact for every input, {in_range} for pixels in "
        "range"
    )


@dataclass(frozen=True, eq=False)
class _Carried:
    """The values that a layer carries, or the image does: activation + floor, or the difference of a pair."""

    wanted: Tensor
    """The patch embedding [embed_dim, values, q, q] of these values: what is left to compute."""
    both_signs: bool
    floor: Tensor
    """[values], float64: zero with both signs."""


@torch.no_grad()
def carry(
    weight: Tensor,
    bias: Tensor | None,
    stem: StemSpec,
    low: Sequence[float] | Tensor | None = None,
    *,
    margin: float = MARGIN,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> tuple[dict[str, Tensor], TransplantReport]:
    """Return the parameters of a conv stem that in eval mode computes a patch embedding.

    Whatever torch's default device and type are, it is computed on the CPU, and rounded once.

    Args:
        weight: patch embedding [embed_dim, in_chans, p, p], applied with stride p.
        bias: [embed_dim], or None for zero.
        stem: a ReLU stem without norm, or with BatchNorm and no biases before it, whose strides multiply to p.
        low: lowest pixel of each channel after normalisation, [in_chans]; a stem with room for both signs needs none.
        margin: how far below ``low`` the function is still preserved.
        dtype: of the parameters; default: the weight's.
        seed: of the fresh weights of channels that carry nothing.

    Returns:
        a CPU state dict with the keys of timm's ``ConvStem``: ``{i}.conv.weight`` and ``{i}.bn.*`` (without norm
        ``{i}.conv.bias``) of each layer i of n, ``{n}.conv.weight`` [embed_dim, channels, k, k] and ``{n}.conv.bias``.

    Raises:
        ArgumentError: stem, tensors, ``low`` or ``margin`` do not fit, or ``low`` is needed; the message says which.
    """
    _check_stem(stem)
    _check_embedding(weight, bias, stem)
    dtype, (embed_dim, in_chans) = dtype or weight.dtype, weight.shape[:2]
    lowest, report = _lowest(low, margin, in_chans), carried_by(stem, embed_dim, in_chans)
    if lowest is None and report.scope == IN_RANGE:
        raise ArgumentError(_unknown_range(report, in_chans))
    lows = None if lowest is None else lowest.to(dtype).double()  # as the biases hold it
    generator = torch.Generator("cpu").manual_seed(seed)
    weight = weight.detach().cpu()
    below = _Carried(weight, False, torch.zeros(in_chans, dtype=torch.float64, device="cpu"))
    state: dict[str, Tensor] = {}
    for index, (layer, shape) in enumerate(zip(report.layers, stem.layers(in_chans=in_chans), strict=True)):
        taps, lacking, carried = _carry_on(below, layer, shape.stride, lows)
        conv = _place(taps, below, layer.both_signs, shape, dtype)
        _draw(conv[layer.used :], generator)
        if stem.norm == "none":
            after = {"conv.bias": _signed(lacking - carried.floor, layer)}
        else:
            after = _norm(lacking, carried, layer, _variance(weight, stem, index, layer), dtype)
        state |= {f"{index}.{name}": value.to(dtype) for name, value in {"conv.weight": conv, **after}.items()}
        if stem.norm == "batchnorm2d":  # a frozen one does not count
            state[f"{index}.bn.num_batches_tracked"] = torch.tensor(0, device="cpu")
        below = carried
    end = len(report.layers)
    last = replace(stem.last_layer(embed_dim), in_chans=stem.channels[-1])
    state[f"{end}.conv.weight"] = _place(below.wanted, below, False, last, dtype)
    constant = below.wanted.sum((2, 3), dtype=torch.float64) @ below.floor
    state[f"{end}.conv.bias"] = (constant if bias is None else constant + bias.detach().cpu()).to(dtype)
    return state, report


def _carry_on(below: _Carried, layer: LayerReport, stride: int, lows: Tensor | None) -> tuple[Tensor, Tensor, _Carried]:
    """Return a layer's taps, the constants that are lacking in the taps' output, and what the layer carries then.

    The taps are [values, values below, stride, stride], the constants [values].

    Args:
        below: what the previous layer carries.
        layer: what this one is to carry.
        stride: of the layer.
        lows: lowest value of each image channel, [in_chans].
    """
    if layer.carries == "pixels":
        taps = torch.eye(layer.count, dtype=below.wanted.dtype, device="cpu").view(layer.count, -1, stride, stride)
        wanted = F.pixel_unshuffle(below.wanted, stride)
        lacking = below.floor.repeat_interleave(stride**2)
    else:
        taps, wanted = _embed(below.wanted, stride)
        lacking = taps.sum((2, 3), dtype=torch.float64) @ below.floor
    floor = torch.zeros_like(lacking)
    if not layer.both_signs and lows is not None:
        floor = lows.repeat_interleave(layer.count // len(lows))
    return taps, lacking, _Carried(wanted, layer.both_signs, floor)


def _embed(wanted: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Return the embedding's share in each stride x stride block, and the embedding as the sum of all shares.

    Args:
        wanted: [embed_dim, values, q, q].
        stride: divides q.

    Returns:
        [embed_dim * places, values, stride, stride] and [embed_dim, embed_dim * places, q / stride, q / stride].
    """
    embed_dim, values, side, _ = wanted.shape
    places = side // stride
    blocks = wanted.reshape(embed_dim, values, places, stride, places, stride).permute(0, 2, 4, 1, 3, 5)
    shares = torch.eye(embed_dim * places**2, dtype=wanted.dtype, device="cpu")
    return blocks.reshape(-1, values, stride, stride), shares.view(embed_dim, places, places, -1).permute(0, 3, 1, 2)


def _place(taps: Tensor, below: _Carried, both_signs: bool, layer: StemLayer, dtype: torch.dtype) -> Tensor:
    """Return a convolution's weight [channels, channels below, kernel, kernel] with these taps, zero elsewhere.

    The taps begin behind the padding, so that they cover the stride's own pixels and never the padding.

    Args:
        taps: [rows, values below, stride, stride].
        below: the values that they apply to.
        both_signs: whether the rows come with both signs.
        layer: sizes of the convolution.
        dtype: of the weight.
    """
    rows, values, stride, _ = taps.shape
    kernel, covered = layer.kernel_size, slice(layer.padding, layer.padding + stride)
    weight = torch.zeros(layer.channels, layer.in_chans, kernel, kernel, dtype=dtype, device="cpu")
    window = weight[:, :, covered, covered]
    signs = ((1, 0), (-1, rows)) if both_signs else ((1, 0),)
    signs_below = ((1, 0), (-1, values)) if below.both_signs else ((1, 0),)
    row, value, y, x = taps.nonzero(as_tuple=True)
    copies = len(row) == rows  # of pixels: a thousandth of the window to write
    for (sign, first), (sign_below, first_below) in itertools.product(signs, signs_below):
        if copies:
            window[row + first, value + first_below, y, x] = sign * sign_below * taps[row, value, y, x].to(dtype)
        else:
            window[first : first + rows, first_below : first_below + values] = taps if sign == sign_below else -taps
    return weight


def _draw(spare: Tensor, generator: torch.Generator) -> None:
    """Draw the weights [spare, channels, kernel, kernel] of channels that carry nothing, in place.

    Source: He et al., "Delving deep into rectifiers", arXiv 1502.01852, fan-in mode.
    """
    drawn = torch.empty(spare.shape, dtype=torch.float64, device="cpu")
    spare.copy_(drawn.normal_(0, math.sqrt(2 / math.prod(spare.shape[1:])), generator=generator))


def _signed(values: Tensor, layer: LayerReport, spare: float = 0.0) -> Tensor:
    """Return what belongs to a layer's channels [width]: ``values`` [count], their negatives, and ``spare``."""
    signed = torch.cat([values, -values]) if layer.both_signs else values
    return F.pad(signed, (0, layer.width - layer.used), value=spare)


def _norm(
    lacking: Tensor, carried: _Carried, layer: LayerReport, variance: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return a BatchNorm that has the statistics of the taps' output, and in eval mode only adds what is lacking."""
    gain = _signed(_coarse(variance.sqrt()), layer, spare=1.0).abs()
    mean = _signed(-lacking, layer).to(dtype).double()  # as it is stored, so that the bias makes up for the rounding
    return {
        "bn.weight": gain,
        "bn.bias": _signed(lacking - carried.floor, layer) + mean,
        "bn.running_mean": mean,
        "bn.running_var": gain.square() - BN_EPS,
    }


def _variance(weight: Tensor, stem: StemSpec, index: int, layer: LayerReport) -> Tensor:
    """Return the variance [count] of what a layer carries, for images whose pixels are like their neighbours.

    Source: Jain, Fundamentals of Digital Image Processing (1989), section 2.9: first-order Markov in both directions.
    """
    if layer.carries == "pixels":
        return torch.full((layer.count,), PIXEL_VARIANCE, dtype=torch.float64, device="cpu")
    side = math.prod(stem.strides[: index + 1])
    shares, steps = _embed(weight.double(), side)[0], torch.arange(side, device="cpu")
    like = CORRELATION ** (steps[:, None] - steps).abs().double()
    own, common = (((like @ part @ like) * part).sum((2, 3)).sum(1) for part in (shares, shares.sum(1, keepdim=True)))
    return PIXEL_VARIANCE * ((1 - CORRELATION) * own + CORRELATION * common)


def _coarse(deviation: Tensor) -> Tensor:
    """Round to four binary digits: gain and variance, its square, are numbers of every type, and undo each other."""
    deviation = deviation.clamp_min(2.0**-7)  # its square is more than BatchNorm's epsilon
    step = torch.exp2(deviation.log2().floor() - 3)
    return (deviation / step).round() * step


def _check_stem(stem: StemSpec) -> None:
    """Raise ``ArgumentError`` unless the stem is ReLU after BatchNorm without biases, or after no norm."""
    normed = stem.norm in ("batchnorm2d", "frozen_bn") and not stem.bias
    if stem.act != "relu" or not (normed or stem.norm == "none"):
        raise ArgumentError(
            "a transplant needs a stem with norm batchnorm2d or frozen_bn and no bias, or norm none, and act relu; got "
            f"norm {stem.norm}, act {stem.act}, bias {stem.bias}: choose another stem, or train this one"
        )


def _check_embedding(weight: Tensor, bias: Tensor | None, stem: StemSpec) -> None:
    """Raise ``ArgumentError`` unless weight and bias are a finite patch embedding with the stem's patch size."""
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise ArgumentError(
            "a patch embedding has a weight [embed_dim, in_chans, p, p] with square patches; "
            f"got shape {list(weight.shape)}: resample it to square patches first"
        )
    if not weight.numel() or not weight.is_floating_point():
        raise ArgumentError(
            "a patch embedding needs at least one input channel and one filter, of floating-point numbers; got shape "
            f"{list(weight.shape)}, {weight.dtype}: convert or correct it first"
        )
    check_stem_patch(stem, weight.shape[-1])
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ArgumentError(f"bias needs shape [{len(weight)}], one value for each filter; got {list(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.is_meta:
            raise ArgumentError(f"{name} is on the meta device, hence without values: load the model's weights first")
        if tensor is not None and not tensor.isfinite().all():
            raise ArgumentError(f"{name} must be finite; got NaN or infinity: check the checkpoint it came from")


def _lowest(low: Sequence[float] | Tensor | None, margin: float, in_chans: int) -> Tensor | None:
    """Return the lowest value [in_chans] that is preserved, or None if ``low`` is; raise ``ArgumentError``."""
    if not (isinstance(margin, Real) and margin >= 0 and math.isfinite(margin)):
        raise ArgumentError(
            f"margin must be zero or positive, and finite; got {margin!r}: 0.25 covers 8/255 beyond range"
        )
    if low is None:
        return None
    lows = numbers(low)
    if lows.shape != (in_chans,) or not lows.isfinite().all():
        raise ArgumentError(
            f"low needs one finite value for each of {in_chans} input channels, (0 - mean) / std; got {low!r}"
        )
    return lows - margin


def _unknown_range(report: TransplantReport, in_chans: int) -> str:
    layer = next(layer for layer in report.layers if not layer.both_signs)
    return (
        f"the range of the {in_chans} input channels is unknown, and {layer.width} channels have no room for "
        f"{layer.count} values with both signs, which needs none: pass pixel_range=(low, high), each with one "
        "normalised value per channel ((0 - mean) / std and (1 - mean) / std), give the model's pretrained_cfg mean "
        "and std of every channel, or take the default stem"
    )
