"""The transplant in closed form: the parameters of a conv stem that computes what a patch embedding does.

The layers carry the pixels to the end of the stem, where the last convolution applies the patch embedding. ReLU drops
what is negative, so a layer needs room. With two channels for each value it carries x and -x, and loses nothing for any
input. With one channel it carries x - low, and loses nothing as long as no pixel is below ``low``. The last layers
carry the embedding instead of the pixels where that takes fewer channels. A stem that is too narrow is refused.

The stride of the stem may differ from the patch size. If it is smaller, the last layer reads a whole patch, so that
patches overlap. If it is larger, each weight is spread over the pixels that are averaged; the first layers average them
where the stem is too narrow to carry every pixel.
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
from convstem.registry.strides import check_reads
from convstem.stem.carried import IN_RANGE, LayerReport, TransplantReport, carried_by, numbers, reach
from convstem.stem.norms import BN_EPS

ALGORITHM = 3
"""Increase it whenever ``carry`` gives another result: published weights are then made again."""


MARGIN = 0.25
"""How far below the darkest pixel a stem without both signs is exact, in normalised units (8/255 or more)."""


PIXEL_VARIANCE, CORRELATION = 1.25, 0.9
"""Variance of a normalised pixel (natural images, ImageNet's mean and std), and its correlation with its neighbour and
with another colour. Only the statistics of a BatchNorm use them; in eval mode the result does not depend on them."""


@dataclass(frozen=True, eq=False)
class _Carried:
    """The values that a layer, or the image, carries: activation + floor, or the difference of two channels."""

    weight: Tensor
    """A patch embedding [embed_dim, channels, p, p]."""
    order: Tensor
    """[values, q, q]: the index of each value's weights in a filter. Layers reorder these indices, not the weights."""
    both_signs: bool
    floor: Tensor
    """[values], float64; zero with both signs."""

    @property
    def wanted(self) -> Tensor:
        """The patch embedding [embed_dim, values, q, q] that remains to be applied to these values."""
        filters = self.weight.flatten(1).index_select(1, self.order.flatten())
        return filters.view(len(filters), *self.order.shape)


def _as_it_is(weight: Tensor) -> Tensor:
    """Return the order of a patch embedding [embed_dim, channels, p, p] whose channels are the values carried."""
    return torch.arange(weight[0].numel(), device="cpu").view(weight.shape[1:])


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
    stride: int | None = None,
) -> tuple[dict[str, Tensor], TransplantReport]:
    """Return the parameters of a conv stem that computes a patch embedding in eval mode.

    It is computed on the CPU whatever torch's default device and type are, and rounded once.

    Args:
        weight: patch embedding [embed_dim, in_chans, p, p].
        bias: [embed_dim], or None for zero.
        stem: a ReLU stem whose strides multiply to ``stride``, without norm, or with BatchNorm and no conv biases.
        low: lowest pixel of each channel after normalisation, [in_chans]; not needed by a stem with room for both
            signs.
        margin: how far below ``low`` the result is still exact.
        dtype: type of the parameters; default: the weight's.
        seed: seed for the weights of channels that carry nothing.
        stride: pixels from patch to patch: a multiple of p, or p divided by a whole number; default: p.

    Returns:
        a CPU state dict with the keys of timm's ``ConvStem``: ``{i}.conv.weight`` and ``{i}.bn.*`` (without norm
        ``{i}.conv.bias``) of each layer i of n, ``{n}.conv.weight`` [embed_dim, channels, k, k] and ``{n}.conv.bias``.

    Raises:
        ArgumentError: stem, tensors, ``low`` or ``margin`` do not fit, or ``low`` is needed and missing.
    """
    _check_stem(stem)
    _check_embedding(weight, bias, stem, stride)
    dtype, (embed_dim, in_chans, patch, _) = dtype or weight.dtype, weight.shape
    lowest, report = _lowest(low, margin, in_chans), carried_by(stem, embed_dim, in_chans, patch)
    if lowest is None and report.scope == IN_RANGE:
        raise ArgumentError(_unknown_range(report, in_chans))
    lows = None if lowest is None else lowest.to(dtype).double()  # rounded as the biases are
    generator = torch.Generator("cpu").manual_seed(seed)
    weight, sides = spread(weight.detach().cpu(), stem.patch_size), [1, *reach(stem, patch)]
    below = _Carried(weight, _as_it_is(weight), False, torch.zeros(in_chans, dtype=torch.float64, device="cpu"))
    state: dict[str, Tensor] = {}
    for index, (layer, shape) in enumerate(zip(report.layers, stem.layers(in_chans=in_chans), strict=True)):
        side = sides[index + 1] // sides[index]
        taps, lacking, carried = _carry_on(below, layer, side, lows)
        conv = _place(taps, side, below, layer.both_signs, shape, dtype)
        _draw(conv[layer.used :], generator)
        if stem.norm == "none":
            after = {"conv.bias": _signed(lacking - carried.floor, layer)}
        else:
            after = _norm(lacking, carried, layer, _variance(weight, sides[index + 1], layer), dtype)
        state |= {f"{index}.{name}": value.to(dtype) for name, value in {"conv.weight": conv, **after}.items()}
        if stem.norm == "batchnorm2d":  # a frozen one does not count
            state[f"{index}.bn.num_batches_tracked"] = torch.tensor(0, device="cpu")
        below = carried
    end = len(report.layers)
    last = replace(stem.last_layer(embed_dim), in_chans=stem.channels[-1])
    wanted = below.wanted
    state[f"{end}.conv.weight"] = _place(wanted, wanted.shape[-1], below, False, last, dtype)
    constant = _of_floor(wanted, below.floor)
    state[f"{end}.conv.bias"] = (constant if bias is None else constant + bias.detach().cpu()).to(dtype)
    return state, report


def spread(weight: Tensor, stride: int) -> Tensor:
    """Return a patch embedding that averages pixels first, if the stride is larger than p; else the same.

    Args:
        weight: [embed_dim, in_chans, p, p]; the result is [embed_dim, in_chans, stride, stride] if it averages.
        stride: pixels from patch to patch.
    """
    times = stride // weight.shape[-1]
    return weight if times <= 1 else weight.repeat_interleave(times, 2).repeat_interleave(times, 3) / times**2


def _carry_on(
    below: _Carried, layer: LayerReport, side: int, lows: Tensor | None
) -> tuple[Tensor | None, Tensor, _Carried]:
    """Return a layer's taps, the constants that their output lacks, and what the layer carries.

    The taps are [values, values below, side, side], or None for copies of the pixels; the constants are [values].

    Args:
        below: what the previous layer carries.
        layer: what this layer is to carry.
        side: positions that it reads along each axis: the stride, or more where patches overlap.
        lows: lowest value of each image channel, [in_chans].
    """
    taps: Tensor | None = None
    weight, order = below.weight, below.order
    if layer.carries == "pixels":
        order = F.pixel_unshuffle(order, side)
        lacking = below.floor.repeat_interleave(side**2)
    elif layer.carries == "averages":
        each = torch.eye(layer.count, dtype=weight.dtype, device="cpu")[:, :, None, None]
        taps = each.expand(-1, -1, side, side) / side**2
        weight = F.avg_pool2d(below.wanted, side) * side**2
        order = _as_it_is(weight)
        lacking = below.floor
    else:
        taps, weight = _embed(below.wanted, side)
        order = _as_it_is(weight)
        lacking = _of_floor(taps, below.floor)
    floor = torch.zeros_like(lacking)
    if not layer.both_signs and lows is not None:
        floor = lows.repeat_interleave(layer.count // len(lows))
    return taps, lacking, _Carried(weight, order, layer.both_signs, floor)


def _of_floor(taps: Tensor, floor: Tensor) -> Tensor:
    """Return the output [rows], in float64, of taps [rows, values, side, side] for values at their floor."""
    if not floor.any():  # as with both signs; the taps need not be read
        return floor.new_zeros(len(taps))
    return taps.sum((2, 3), dtype=torch.float64) @ floor


def _embed(wanted: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Return the embedding of each stride x stride block, and the embedding as the sum over the blocks.

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


def _place(
    taps: Tensor | None, side: int, below: _Carried, both_signs: bool, layer: StemLayer, dtype: torch.dtype
) -> Tensor:
    """Return a convolution's weight [channels, channels below, kernel, kernel] with these taps, zero elsewhere.

    The taps start after the padding, so they never read it.

    Args:
        taps: [rows, values below, side, side]; None: copies, one row for each value at each position.
        side: positions that the taps read along each axis.
        below: the values that they read.
        both_signs: whether each row has a second channel with the opposite sign.
        layer: sizes of the convolution.
        dtype: type of the weight.
    """
    values = len(below.order)
    rows = values * side**2 if taps is None else len(taps)
    kernel, covered = layer.kernel_size, slice(layer.padding, layer.padding + side)
    weight = torch.zeros(layer.channels, layer.in_chans, kernel, kernel, dtype=dtype, device="cpu")
    window = weight[:, :, covered, covered]
    signs = ((1, 0), (-1, rows)) if both_signs else ((1, 0),)
    signs_below = ((1, 0), (-1, values)) if below.both_signs else ((1, 0),)
    row = torch.arange(rows, device="cpu")
    for (sign, first), (sign_below, first_below) in itertools.product(signs, signs_below):
        if taps is None:  # few entries are not zero
            value, place = row // side**2 + first_below, row % side**2
            window[row + first, value, place // side, place % side] = sign * sign_below
            continue
        part = window[first : first + rows, first_below : first_below + values]
        if sign == sign_below:
            part.copy_(taps)
        else:
            part.sub_(taps)  # from zero: a negation would give -0.0
    return weight


def _draw(spare: Tensor, generator: torch.Generator) -> None:
    """Draw the weights [spare, channels, kernel, kernel] of channels that carry nothing, in place.

    Source: He et al., "Delving deep into rectifiers", arXiv 1502.01852, fan-in mode.
    """
    drawn = torch.empty(spare.shape, dtype=torch.float64, device="cpu")
    spare.copy_(drawn.normal_(0, math.sqrt(2 / math.prod(spare.shape[1:])), generator=generator))


def _signed(values: Tensor, layer: LayerReport, spare: float = 0.0) -> Tensor:
    """Return a layer's channels [width]: ``values`` [count], their negatives if it has both signs, and ``spare``."""
    signed = torch.cat([values, -values]) if layer.both_signs else values
    return F.pad(signed, (0, layer.width - layer.used), value=spare)


def _norm(
    lacking: Tensor, carried: _Carried, layer: LayerReport, variance: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return a BatchNorm with the statistics of the taps' output; in eval mode it only adds the lacking constants."""
    gain = _signed(_coarse(variance.sqrt()), layer, spare=1.0).abs()
    mean = _signed(-lacking, layer).to(dtype).double()  # as stored, so that the bias corrects for the rounding
    return {
        "bn.weight": gain,
        "bn.bias": _signed(lacking - carried.floor, layer) + mean,
        "bn.running_mean": mean,
        "bn.running_var": gain.square() - BN_EPS,
    }


def _variance(weight: Tensor, side: int, layer: LayerReport) -> Tensor:
    """Return the variance [count] of what a layer carries, for images whose neighbouring pixels are correlated.

    Args:
        weight: patch embedding [embed_dim, in_chans, p, p].
        side: pixels that a position of the layer covers along each axis.
        layer: what the layer carries.

    Source: Jain, Fundamentals of Digital Image Processing (1989), section 2.9: first-order Markov in both directions.
    """
    if layer.carries != "embedding":
        return torch.full((layer.count,), PIXEL_VARIANCE, dtype=torch.float64, device="cpu")
    shares, steps = _embed(weight.double(), side)[0], torch.arange(side, device="cpu")
    like = CORRELATION ** (steps[:, None] - steps).abs().double()
    own, common = (((like @ part @ like) * part).sum((2, 3)).sum(1) for part in (shares, shares.sum(1, keepdim=True)))
    return PIXEL_VARIANCE * ((1 - CORRELATION) * own + CORRELATION * common)


def _coarse(deviation: Tensor) -> Tensor:
    """Round to four binary digits, so that gain and variance (its square) are exact in every type and cancel out."""
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


def _check_embedding(weight: Tensor, bias: Tensor | None, stem: StemSpec, stride: int | None) -> None:
    """Raise ``ArgumentError`` unless weight and bias are a finite patch embedding for the stem."""
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise ArgumentError(
            "a patch embedding has a weight [embed_dim, in_chans, p, p] with square patches; "
            f"got shape {list(weight.shape)}: resample it to square patches first"
        )
    if not weight.numel() or not weight.is_floating_point() or weight.element_size() == 1:
        raise ArgumentError(
            "a patch embedding needs at least one input channel and one filter, of floating-point numbers; got shape "
            f"{list(weight.shape)}, {weight.dtype}: convert or correct it first"
        )
    check_stem_patch(stem, stride or weight.shape[-1])
    check_reads(stem, weight.shape[-1])
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ArgumentError(f"bias needs shape [{len(weight)}], one value for each filter; got {list(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.is_meta:
            raise ArgumentError(f"{name} is on the meta device, so it has no values: load the model's weights first")
        if tensor is not None and not all(extreme.isfinite() for extreme in tensor.aminmax()):  # NaN would be both
            raise ArgumentError(f"{name} must be finite; got NaN or infinity: check the checkpoint it came from")


def _lowest(low: Sequence[float] | Tensor | None, margin: float, in_chans: int) -> Tensor | None:
    """Return the lowest values [in_chans] that are preserved, or None without ``low``; check both arguments."""
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
        f"the range of the {in_chans} input channels is unknown, and {layer.width} channels have no room for both "
        f"signs of {layer.count} values, which needs no range: pass pixel_range=(low, high), each with one normalised "
        "value per channel ((0 - mean) / std and (1 - mean) / std), give the model's pretrained_cfg mean and std of "
        "every channel, or take the default stem"
    )
