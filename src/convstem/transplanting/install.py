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
from convstem.transplanting.contents import box_minimum, moments, regress
from convstem.transplanting.plan import LayerPlan
from convstem.transplanting.reduction import DATA_SIGMAS
from convstem.transplanting.spare import VARIANCE_FLOOR, calibrate_spare, fill_spare, synthetic_images
from convstem.transplanting.statistics import PatchStatistics


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
        fill_spare(conv[plan.used :], generator)
        state[f"{index}.conv.weight"] = conv.to(target.dtype)
        state |= {f"{index}.{name}": value for name, value in norm.state.items()}
    readout, predicted = _install_readout(weight, bias, plans[-1].content, carrier, target)
    state |= {f"{len(plans)}.conv.{name}": value for name, value in readout.items()}
    if target.stem.norm != "none" and any(plan.used < plan.width for plan in plans):
        images = synthetic_images(target.statistics, target.box, generator)
        calibrate_spare(state, plans, target.stem, images, target.bn_eps)
    return state, shifts, predicted


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
