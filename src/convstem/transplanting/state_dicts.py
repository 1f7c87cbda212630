"""Transplants tensors: those of one patch embedding, or a whole checkpoint; the algebra is in ``algebra``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from convstem.errors import warn
from convstem.registry.stem_spec import StemSpec, default_stem
from convstem.transplanting.algebra import transplant_stem
from convstem.transplanting.kept import cached_transplant
from convstem.transplanting.pixels import PixelRange, both_ends, normalised_range
from convstem.transplanting.report import TransplantReport
from convstem.transplanting.statistics import PatchStatistics

_logger = logging.getLogger(__name__)


def transplant_state_dict(
    state_dict: Mapping[str, Tensor],
    stem: StemSpec,
    mean: Sequence[float],
    std: Sequence[float],
    in_chans: int = 3,
) -> dict[str, Tensor]:
    """Return a patchify ViT's checkpoint in timm's layout with its patch embedding transplanted.

    A kernel of another size is resampled to the stem's patch, and adapted to ``in_chans``, as timm would. The stem is
    kept in the cache (``kept``).

    Args:
        state_dict: holds ``patch_embed.proj.weight`` [embed_dim, channels, patch, patch] and, usually, ``.bias``.
        stem: the stem.
        mean, std: the normalisation the weights were trained with.
        in_chans: input channels of the result.
    """
    rest = {key: tensor for key, tensor in state_dict.items() if not key.startswith("patch_embed.proj.")}
    weight, bias = state_dict["patch_embed.proj.weight"], state_dict.get("patch_embed.proj.bias")
    if weight.ndim == 2:  # big_vision's linear patch embedding: [embed_dim, channels * patch * patch]
        weight = weight.view(len(weight), -1, stem.patch_size, stem.patch_size)
    weight = resample_patch_embed(weight, [stem.patch_size, stem.patch_size])
    if in_chans != weight.shape[1]:
        _logger.info(
            f"Adapted the patch embedding from {weight.shape[1]} to {in_chans} input channels by timm's rule, which "
            "repeats or sums the filters; convstem.transplant(..., in_chans=, bands=) places them on chosen bands."
        )
        weight = adapt_input_conv(in_chans, weight)
    state, _ = transplant_tensors(weight, bias, stem, normalised_range(mean, std, in_chans), cached=True)
    return {**rest, **{f"patch_embed.backbone.{key}": tensor for key, tensor in state.items()}}


def transplant_tensors(
    weight: Tensor,
    bias: Tensor | None,
    spec: StemSpec,
    pixel_range: PixelRange | None,
    statistics: PatchStatistics | None = None,
    margin: float = 0.25,
    cached: bool = False,
) -> tuple[dict[str, Tensor], TransplantReport]:
    """Return the state dict of a stem that computes a patch embedding, and the report.

    Args:
        weight: patch embedding [embed_dim, in_chans, p, p].
        bias: [embed_dim], or None for zero.
        spec: the stem.
        pixel_range: lowest and highest normalised pixel of each channel, if known.
        statistics: of the patches; default: the prior.
        margin: see ``transplant_stem``.
        cached: keep the result for the next time; not with ``statistics``.

    Warns:
        UserWarning: the stem is too narrow to be exact.
    """
    # A frozen norm computes what a BatchNorm in eval mode does, from the same tensors.
    trainable = replace(spec, norm="batchnorm2d") if spec.norm == "frozen_bn" else spec
    low, high = (None, None) if pixel_range is None else both_ends(pixel_range)
    compute = partial(
        transplant_stem, weight, bias, trainable,
        low=low, high=high, statistics=statistics, margin=margin, dtype=weight.dtype,
    )  # fmt: skip
    state, report = cached_transplant(weight, bias, trainable, pixel_range, margin, compute) if cached else compute()
    if not report.exact:
        warn(
            f"the stem {list(spec.channels)} is too narrow to carry the whole patch embedding: predicted relative "
            f"error {report.predicted_relative_error:.1e}. Exact for this patch size: "
            f"{list(default_stem(spec.patch_size, *weight.shape[:2]).channels)}"
        )
    return state, report
