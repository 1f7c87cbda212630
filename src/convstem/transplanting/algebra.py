"""Training-free conversion of a patch embedding into a conv stem that computes the same function.

Tensors in, tensors out: ``plan`` decides what every layer carries, ``install`` turns that into parameters, and this
file checks what comes in and reports what went out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemSpec, check_stem_patch, choice
from convstem.transplanting.install import Target, install
from convstem.transplanting.plan import LayerPlan, plan_layers
from convstem.transplanting.report import LayerReport, TransplantReport
from convstem.transplanting.statistics import PatchStatistics, floored, prior_statistics

ALGORITHM = 2
"""Raise it whenever ``transplant_stem`` gives another result: kept stems and published weights are made again."""


SHIFTS = ("auto", "box", "data")
"""How far contents are shifted to be positive; see ``transplant_stem``."""


@torch.no_grad()
def transplant_stem(
    weight: Tensor,
    bias: Tensor | None,
    stem: StemSpec,
    *,
    low: Sequence[float] | Tensor | None = None,
    high: Sequence[float] | Tensor | None = None,
    statistics: PatchStatistics | None = None,
    margin: float = 0.25,
    shift: str = "auto",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    bn_eps: float = 1e-5,
) -> tuple[dict[str, Tensor], TransplantReport]:
    """Convert a patch embedding into the parameters of a conv stem that in eval mode computes the same.

    Args:
        weight: patch embedding [embed_dim, in_chans, p, p], applied with stride p.
        bias: [embed_dim], or None for zero.
        stem: a ReLU stem without norm, or with BatchNorm and no conv biases, whose strides multiply to p.
        low: lowest pixel of each channel after normalisation, [in_chans].
        high: highest pixel of each channel after normalisation, [in_chans]. Neither is needed where every layer
            has room for both signs.
        statistics: of the p x p patches the model will see; default: ``prior_statistics``.
        margin: how far beyond ``low`` and ``high``, in normalised units, the function is still preserved.
        shift: how reduced contents are kept positive. ``box``: for every pixel in range, hence exact wherever
            the widths allow. ``data``: as far as the statistics say they go, the largest carried with both
            signs in place of the least; approximate, and about ten times finer in bfloat16. ``auto``:
            ``data`` for a 16-bit ``dtype``, else ``box``.
        seed: of the weights of channels that carry nothing.
        dtype: of the returned parameters; everything is computed in float64 and rounded once.
        bn_eps: the stem's BatchNorm epsilon.

    Returns:
        a CPU state dict: ``{i}.conv.weight`` and ``{i}.bn.*`` (without norm ``{i}.conv.bias``) for each layer i of n,
        ``{n}.conv.weight`` [embed_dim, channels, 1, 1] and ``{n}.conv.bias`` [embed_dim]; and a report.

    Raises:
        ArgumentError: the stem, tensors, pixel range or statistics do not fit; the message says which.
    """
    _check_stem(stem)
    _check_embedding(weight, bias, stem)
    choice("shift", shift, SHIFTS)
    box = None if low is None or high is None else _pixel_range(low, high, margin, weight.shape[1])
    statistics = _usable(statistics, weight)
    filters = weight.to("cpu", torch.float64)
    constant = filters.new_zeros(len(filters)) if bias is None else bias.to("cpu", torch.float64)
    route = shift if shift != "auto" else "data" if dtype.itemsize < 4 else "box"
    target = Target(stem, box, statistics, route, dtype, bn_eps)
    plans = plan_layers(filters, stem, statistics, coarse=route == "data")
    state, shifts, predicted = install(filters, constant, plans, target, torch.Generator().manual_seed(seed))
    layers = tuple(map(_report_layer, plans, shifts))
    return state, TransplantReport(layers, all(_is_exact(plan, route) for plan in plans), predicted)


def _is_exact(plan: LayerPlan, route: str) -> bool:
    """Return whether a layer loses nothing and cuts nothing off for pixels in range."""
    return plan.lossless and (route == "box" or plan.split or not plan.reduced)


def _report_layer(plan: LayerPlan, shift: Tensor) -> LayerReport:
    """Summarise a plan and its shifts [rank]."""
    ends = float(shift.min()), float(shift.max())
    return LayerReport(plan.needed, plan.rank, plan.width, plan.kind, plan.lossless, plan.split, *ends)


def _check_stem(stem: StemSpec) -> None:
    """Raise ``ArgumentError`` unless the stem is ReLU after BatchNorm without biases, or after no norm."""
    if (stem.norm, stem.act, stem.bias) not in (("batchnorm2d", "relu", False), ("none", "relu", True)):
        raise ArgumentError(
            "a transplant needs a stem with norm batchnorm2d and no bias, or norm none, and act relu; got "
            f"norm {stem.norm}, act {stem.act}, bias {stem.bias}: choose another stem, or train this one"
        )


def _check_embedding(weight: Tensor, bias: Tensor | None, stem: StemSpec) -> None:
    """Raise ``ArgumentError`` unless weight and bias are a finite patch embedding with the stem's patch size."""
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise ArgumentError(
            "a patch embedding has a weight [embed_dim, in_chans, p, p] with square patches; "
            f"got shape {list(weight.shape)}: resample it to square patches first"
        )
    check_stem_patch(stem, weight.shape[-1])
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ArgumentError(f"bias needs shape [{len(weight)}], one value for each filter; got {list(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.isfinite().all():
            raise ArgumentError(f"{name} must be finite; got NaN or infinity: check the checkpoint it came from")


def _pixel_range(
    low: Sequence[float] | Tensor, high: Sequence[float] | Tensor, margin: float, in_chans: int
) -> tuple[Tensor, Tensor]:
    """Return the two ends of the pixel range [in_chans], widened by ``margin``, or raise ``ArgumentError``."""
    bottom, top = _numbers(low), _numbers(high)
    if not bottom.shape == top.shape == (in_chans,):
        raise ArgumentError(
            f"low and high need one value for each of {in_chans} input channels; got {low!r} and {high!r}: "
            "they are (0 - mean) / std and (1 - mean) / std"
        )
    if not (bottom < top).all() or not torch.cat([bottom, top]).isfinite().all():
        raise ArgumentError(
            f"low must be below high in every channel, and both finite; got {low!r} and {high!r}: swap or correct them"
        )
    if not (isinstance(margin, Real) and margin >= 0 and math.isfinite(margin)):
        raise ArgumentError(
            f"margin must be zero or positive, and finite; got {margin!r}: 0.25 covers 8/255 beyond range"
        )
    return bottom - margin, top + margin


def _numbers(end: object) -> Tensor:
    """Return one end of a pixel range in float64; what is no list of numbers has no length that fits."""
    try:
        return torch.as_tensor(end, dtype=torch.float64).cpu()
    except (RuntimeError, TypeError, ValueError):
        return torch.zeros(0, dtype=torch.float64)


def _usable(statistics: PatchStatistics | None, weight: Tensor) -> PatchStatistics:
    """Return invertible statistics of the weight's patches: those given, or the prior."""
    in_chans, patch_size = weight.shape[1], weight.shape[-1]
    if statistics is None:
        statistics = prior_statistics(patch_size, in_chans)
    if (statistics.in_chans, statistics.patch_size) != (in_chans, patch_size):
        raise ArgumentError(
            f"statistics must be of {patch_size} x {patch_size} patches with {in_chans} channels, like the "
            f"weight; got {statistics.patch_size} x {statistics.patch_size} with {statistics.in_chans}: "
            "measure them again with image_statistics"
        )
    return PatchStatistics(statistics.mean.double(), floored(statistics.covariance.double()))
