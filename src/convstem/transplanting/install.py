"""Turns the plan of a transplant into conv, BatchNorm and 1x1 parameters.

ReLU passes only what is positive, so a layer carries each content either twice, as x and -x ("split", where
the layer is wide enough), or plus a shift that keeps it positive. All is float64 but for one rounding to the
target type; each layer undoes the BatchNorm below it as stored, so that rounding a norm costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemSpec
from convstem.transplanting.plan import DATA_SIGMAS, LayerPlan, congruence, regress
from convstem.transplanting.statistics import PatchStatistics, sub_covariance, sub_mean

SPARE_IMAGES = 16
"""Synthetic images of 2 x 2 patches from which unused channels get their running statistics."""


NORM_TENSORS = ("running_mean", "running_var", "weight", "bias")
"""BatchNorm's tensors in the order of ``torch.nn.functional.batch_norm``."""


VARIANCE_FLOOR = 1e-12
"""Smallest running variance, for contents that do not vary in the statistics."""


@dataclass(frozen=True, eq=False)
class Target:
    """What a plan is installed into, and for which pixels."""

    stem: StemSpec
    box: tuple[Tensor, Tensor] | None
    """The lowest and the highest pixel the shifts allow for, [in_chans] each; None if unknown."""
    statistics: PatchStatistics
    shift: str
    """``box`` or ``data``."""
    dtype: torch.dtype
    bn_eps: float


@dataclass(frozen=True, eq=False)
class Carrier:
    """How content is read back from activations: ``read @ activations + offset``."""

    read: Tensor
    """[rank, channels]."""
    offset: Tensor
    """[rank]."""


@dataclass(frozen=True, eq=False)
class Norm:
    """What follows a convolution's weights, in the target type, and what that computes in float64."""

    state: dict[str, Tensor]
    """BatchNorm's tensors, or without a norm the convolution's bias."""
    scale: Tensor
    """[channels]."""
    start: Tensor
    """[channels]: the output for a zero input."""


def install(
    weight: Tensor, bias: Tensor, plans: list[LayerPlan], target: Target, generator: torch.Generator
) -> tuple[dict[str, Tensor], list[Tensor], float]:
    """Return the parameters that carry out ``plans`` and then read the embedding off.

    Args:
        weight: patch embedding [embed_dim, in_chans, p, p], float64.
        bias: [embed_dim], float64.
        plans: one for each layer of ``target.stem``.
        target: what to install into.
        generator: draws the initial weights of unused channels.

    Returns:
        the state dict, each layer's shifts [rank], and the relative embedding error before rounding.
    """
    state: dict[str, Tensor] = {}
    shifts: list[Tensor] = []
    in_chans = weight.shape[1]
    carrier = Carrier(torch.eye(in_chans, dtype=weight.dtype), weight.new_zeros(in_chans))
    for index, plan in enumerate(plans):
        shifts.append(content_shift(plan, target))
        kernel = target.stem.kernel_sizes[index]
        conv, norm, carrier = _install_layer(plan, carrier, shifts[-1], target, kernel)
        _fill_spare(conv[used_channels(plan) :], generator)
        state[f"{index}.conv.weight"] = conv.to(target.dtype)
        state |= {f"{index}.{name}": value for name, value in norm.state.items()}
    readout, predicted = _install_readout(weight, bias, plans[-1].content, carrier, target)
    state |= {f"{len(plans)}.conv.{name}": value for name, value in readout.items()}
    if target.stem.norm != "none":
        _calibrate_spare(state, plans, target, generator)
    return state, shifts, predicted


def used_channels(plan: LayerPlan) -> int:
    """Return how many channels of a layer carry content."""
    return plan.rank + plan.paired


def content_shift(plan: LayerPlan, target: Target) -> Tensor:
    """Return the shift [rank] of each content: zero where it is split.

    Raises:
        ArgumentError: a shift is needed and the range of pixels is unknown.
    """
    if plan.split:
        return plan.content.new_zeros(plan.rank)
    if target.box is None:
        raise ArgumentError(_unknown_range(plan, target.statistics))
    lowest = box_minimum(plan.content, *target.box)
    if plan.reduced and target.shift == "data":
        mean, variance = moments(plan.content, target.statistics)
        lowest = torch.maximum(lowest, mean - DATA_SIGMAS * variance.sqrt())
    shift = -lowest
    shift[: plan.paired] = 0
    return shift


def _unknown_range(plan: LayerPlan, statistics: PatchStatistics) -> str:
    return (
        f"the range of the {statistics.in_chans} input channels is unknown, and {plan.width} channels have no room for "
        f"{plan.rank} contents with both signs, which needs none: pass pixel_range=(low, high), each with one "
        "normalised value per channel ((0 - mean) / std and (1 - mean) / std), give the model's pretrained_cfg mean "
        "and std of every channel, or take the default stem"
    )


def box_minimum(content: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the lowest value [rank] of ``content`` [rank, in_chans, q, q] for pixels within [low, high]."""
    positive = content.clamp_min(0).sum((2, 3))
    negative = content.clamp_max(0).sum((2, 3))
    return positive @ low + negative @ high


def moments(content: Tensor, statistics: PatchStatistics) -> tuple[Tensor, Tensor]:
    """Return mean [rank] and variance [rank] of ``content`` [rank, in_chans, q, q]."""
    size = content.shape[-1]
    mean = content.flatten(1) @ sub_mean(statistics, size).flatten()
    return mean, congruence(content, sub_covariance(statistics, size)).diagonal()


def _install_layer(
    plan: LayerPlan, below: Carrier, shift: Tensor, target: Target, kernel: int
) -> tuple[Tensor, Norm, Carrier]:
    """Return a layer's conv weight [width, channels, kernel, kernel], its norm, and how to read its content.

    Unused channels have zero weights, identity norms, and zero columns in the carrier.
    """
    taps = torch.einsum("rjyx,ji->riyx", plan.taps, below.read)
    constant = plan.taps.sum((2, 3)) @ below.offset  # content = conv output + constant
    mean, variance = moments(plan.content, target.statistics)
    twice, paired = torch.cat([variance, variance[: plan.paired]]), plan.paired
    norm = _norm(_signed(mean - constant, paired), twice, _signed(constant + shift, paired), plan.width, target)
    return _conv_weight(_signed(taps, paired), plan.width, kernel), norm, _carrier(plan, norm, constant)


def _signed(values: Tensor, paired: int) -> Tensor:
    """Append the negatives of the first ``paired`` of some ``values`` [rank, ...]."""
    return torch.cat([values, -values[:paired]])


def _conv_weight(taps: Tensor, width: int, kernel: int) -> Tensor:
    """Place ``taps`` [used, channels, stride, stride] in zeros [width, channels, kernel, kernel].

    From the kernel's centre on, so that they cover the stride's own pixels and never the padding.
    """
    used, channels, stride, _ = taps.shape
    weight = taps.new_zeros(width, channels, kernel, kernel)
    centre = (kernel - 1) // 2
    weight[:used, :, centre : centre + stride, centre : centre + stride] = taps
    return weight


def _norm(mean: Tensor, variance: Tensor, added: Tensor, width: int, target: Target) -> Norm:
    """Return a norm with these running statistics [used] that in eval mode only adds ``added`` [used]."""
    spare = (0, width - len(mean))
    if target.stem.norm == "none":
        bias = F.pad(added, spare).to(target.dtype)
        return Norm({"conv.bias": bias}, torch.ones_like(bias, dtype=torch.float64), bias.double())
    stored_mean = F.pad(mean, spare).to(target.dtype)
    stored_variance = F.pad(variance.clamp_min(VARIANCE_FLOOR), spare, value=1.0).to(target.dtype)
    deviation = (stored_variance.double() + target.bn_eps).sqrt()
    weight = deviation.clone()
    weight[len(mean) :] = 1
    stored_weight = weight.to(target.dtype)
    stored_bias = (F.pad(added, spare) + stored_mean.double()).to(target.dtype)
    state = {
        "bn.weight": stored_weight,
        "bn.bias": stored_bias,
        "bn.running_mean": stored_mean,
        "bn.running_var": stored_variance,
        "bn.num_batches_tracked": torch.tensor(0),
    }
    scale = stored_weight.double() / deviation
    return Norm(state, scale, stored_bias.double() - stored_mean.double() * scale)


def _carrier(plan: LayerPlan, norm: Norm, constant: Tensor) -> Carrier:
    """Return how to read a layer's content, conv output plus ``constant`` [rank], after norm and ReLU."""
    inverse = torch.diag(1 / norm.scale)
    read = inverse[: plan.rank].clone()
    offset = constant - read @ norm.start
    read[: plan.paired] -= inverse[plan.rank : plan.rank + plan.paired]
    offset[: plan.paired] = 0  # x+ - x- has no shift
    return Carrier(read, offset)


def _install_readout(
    weight: Tensor, bias: Tensor, content: Tensor, carrier: Carrier, target: Target
) -> tuple[dict[str, Tensor], float]:
    """Return the 1x1 that reads the embedding off the last layer, and the relative error of doing so."""
    statistics = target.statistics
    coefficients = regress(weight, content, statistics)
    residual = weight - (coefficients @ content.flatten(1)).view_as(weight)
    constant = bias + residual.flatten(1) @ statistics.mean.flatten()
    readout = {
        "weight": (coefficients @ carrier.read)[:, :, None, None].to(target.dtype),
        "bias": (constant + coefficients @ carrier.offset).to(target.dtype),
    }
    mean, variance = moments(weight, statistics)
    power = variance.sum() + (bias + mean).square().sum()
    error = moments(residual, statistics)[1].sum()
    return readout, math.sqrt(error / power.clamp_min(torch.finfo(power.dtype).tiny))


def _fill_spare(weight: Tensor, generator: torch.Generator) -> None:
    """Draw the incoming weights [spare, channels, kernel, kernel] of unused channels, in place.

    Source: He et al., "Delving deep into rectifiers", arXiv 1502.01852, fan-in mode.
    """
    fan_in = weight[:1].numel() or 1
    weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)


def _calibrate_spare(
    state: dict[str, Tensor], plans: list[LayerPlan], target: Target, generator: torch.Generator
) -> None:
    """Set the running statistics of unused channels, in place, from synthetic images."""
    last = max((index for index, plan in enumerate(plans) if used_channels(plan) < plan.width), default=-1)
    activations = synthetic_images(target, generator) if last >= 0 else torch.zeros(0)
    for index, plan in enumerate(plans[: last + 1]):
        kernel, stride = target.stem.kernel_sizes[index], target.stem.strides[index]
        weight = state[f"{index}.conv.weight"].double()
        response = F.conv2d(activations, weight, stride=stride, padding=(kernel - 1) // 2)
        mean, variance, gain, bias = (state[f"{index}.bn.{name}"] for name in NORM_TENSORS)
        spare = slice(used_channels(plan), None)
        seen_variance, seen_mean = torch.var_mean(response, (0, 2, 3))
        mean[spare] = seen_mean[spare]
        variance[spare] = seen_variance[spare].clamp_min(VARIANCE_FLOOR)
        normalised = F.batch_norm(
            response, mean.double(), variance.double(), gain.double(), bias.double(), eps=target.bn_eps
        )
        activations = normalised.relu()


def synthetic_images(target: Target, generator: torch.Generator) -> Tensor:
    """Draw images [SPARE_IMAGES, in_chans, 2p, 2p] of patches with these statistics, within the range."""
    statistics = target.statistics
    in_chans, size = statistics.in_chans, statistics.patch_size
    noise = torch.empty(4 * SPARE_IMAGES, statistics.mean.numel(), dtype=torch.float64)
    factor = torch.linalg.cholesky(statistics.covariance)
    patches = noise.normal_(generator=generator) @ factor.T + statistics.mean.flatten()
    tiled = patches.view(SPARE_IMAGES, 2, 2, in_chans, size, size).permute(0, 3, 1, 4, 2, 5)
    images: Tensor = tiled.reshape(SPARE_IMAGES, in_chans, 2 * size, 2 * size)
    if target.box is None:
        return images
    low, high = target.box
    return images.clamp(low[:, None, None], high[:, None, None])
