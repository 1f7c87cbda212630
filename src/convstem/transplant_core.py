"""Training-free conversion of a patch embedding into a conv stem that computes the same function.

``transplant_stem`` takes tensors and returns tensors. ``transplant_plan`` decides what every layer carries; this file turns
that into conv, BatchNorm and 1x1 parameters. ReLU only passes what is positive, so a layer carries each content either
twice, as x and -x ("split", where it is wide enough), or plus a shift that keeps it positive over the pixel range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convstem.specs import StemSpec, check_stem_patch, choice
from convstem.statistics import PatchStatistics, prior_statistics, sub_covariance, sub_mean
from convstem.transplant_plan import LayerPlan, congruence, floored, plan_layers, regress

SHIFTS = ("auto", "box", "data")
"""How far a content is shifted: as far as any pixel in range can push it, or as far as the statistics say it goes."""

DATA_SIGMAS = 12.0
"""Standard deviations below the mean at which ``shift="data"`` lets a reduced content be cut off."""

SPARE_IMAGES = 16
"""Synthetic images of 2 x 2 patches that give unused channels their running statistics."""

VARIANCE_FLOOR = 1e-12
"""Smallest running variance, for contents that do not vary in the statistics."""


@dataclass(frozen=True)
class LayerReport:
    """How one layer was filled."""

    needed: int
    """Channels that carry everything below."""
    rank: int
    """Contents carried."""
    width: int
    """Channels the stem has."""
    kind: str
    """``identity`` (everything is carried) or ``reduced``."""
    lossless: bool
    """Whether nothing the embedding needs is lost."""
    split: bool
    """Whether each content is carried with both signs, hence for every input and with no shift."""
    shift_min: float
    shift_max: float


@dataclass(frozen=True)
class TransplantReport:
    """What a transplant preserves."""

    layers: tuple[LayerReport, ...]
    """One record for each conv layer."""
    exact: bool
    """Whether the stem computes the patch embedding up to round-off, for pixels in range."""
    predicted_relative_error: float
    """Root-mean-square error of the embedding over its root-mean-square, on patches with the given statistics."""

    def summary(self) -> str:
        """Return the report as one paragraph."""
        kind = "exact" if self.exact else "approximate"
        layers = "; ".join(f"layer {index}: {_describe(layer)}" for index, layer in enumerate(self.layers))
        reach = "any input" if all(layer.split for layer in self.layers) else "pixels in range"
        return (
            f"The transplant is {kind} for {reach}, with a predicted relative error of the patch embedding of "
            f"{self.predicted_relative_error:.1e} before rounding. {layers.capitalize()}."
        )


def _describe(layer: LayerReport) -> str:
    """Describe a layer in a few words."""
    loss = "" if layer.kind == "identity" else ", lossless" if layer.lossless else ", lossy"
    sign = "split by sign" if layer.split else f"shifted by {layer.shift_min:.3g} to {layer.shift_max:.3g}"
    return f"{layer.kind}{loss}, {layer.rank} of {layer.needed} contents in {layer.width} channels, {sign}"


@dataclass(frozen=True, eq=False)
class _Carrier:
    """How a content is read back from activations: ``read @ activations + offset``."""

    read: Tensor
    """[rank, channels]"""
    offset: Tensor
    """[rank]"""


@dataclass(frozen=True, eq=False)
class _Target:
    """Where and for which inputs a plan is installed."""

    stem: StemSpec
    low: Tensor
    """[in_chans], lowest pixel the shifts allow for."""
    high: Tensor
    """[in_chans], highest."""
    statistics: PatchStatistics
    shift: str
    dtype: torch.dtype
    bn_eps: float
    generator: torch.Generator


@torch.no_grad()
def transplant_stem(
    weight: Tensor,
    bias: Tensor | None,
    stem: StemSpec,
    *,
    low: Sequence[float] | Tensor,
    high: Sequence[float] | Tensor,
    statistics: PatchStatistics | None = None,
    margin: float = 0.25,
    shift: str = "auto",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    bn_eps: float = 1e-5,
) -> tuple[dict[str, Tensor], TransplantReport]:
    """Convert a patch embedding into the parameters of a conv stem, in eval mode the same function of the pixels.

    Args:
        weight: patch embedding [embed_dim, in_chans, p, p], applied with stride p.
        bias: [embed_dim], or None for zero.
        stem: a ReLU and BatchNorm stem without conv biases, whose strides multiply to p.
        low: lowest pixel of each channel after normalisation, [in_chans].
        high: highest pixel of each channel after normalisation, [in_chans].
        statistics: of the p x p patches the model will see; default: ``prior_statistics``.
        margin: how far beyond ``low`` and ``high``, in normalised units, the function is still preserved.
        shift: ``box`` holds for every pixel in range; ``data`` cuts reduced contents off ``DATA_SIGMAS`` standard
            deviations out, for finer low-precision arithmetic; ``auto`` is ``box`` for a float32 or float64 ``dtype``
            and ``data`` for a narrower one.
        seed: of the initial weights of channels that carry nothing.
        dtype: of the returned parameters; everything is computed in float64 and rounded once.
        bn_eps: the stem's BatchNorm epsilon.

    Returns:
        A CPU state dict, ``{i}.conv.weight`` and ``{i}.bn.*`` for every layer i of n, then ``{n}.conv.weight``
        [embed_dim, channels, 1, 1] and ``{n}.conv.bias``; and a report.

    Raises:
        ValueError: the stem, the tensors, the pixel range or the statistics do not fit; the message says which.
    """
    _check_stem(stem)
    _check_embedding(weight, bias, stem)
    choice("shift", shift, SHIFTS)
    _check_margin(margin)
    if statistics is None:
        statistics = prior_statistics(weight.shape[-1], weight.shape[1])
    _check_statistics(statistics, weight)
    bottom, top = _pixel_range(low, high, weight.shape[1])
    filters = weight.to("cpu", torch.float64)
    constant = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.to("cpu", torch.float64)
    statistics = PatchStatistics(statistics.mean, floored(statistics.covariance))
    generator = torch.Generator().manual_seed(seed)
    target = _Target(stem, bottom - margin, top + margin, statistics, shift, dtype, bn_eps, generator)
    return _install(filters, constant, plan_layers(filters, stem, statistics), target)
