"""Transplants the patch embedding in a whole checkpoint; ``surgery`` does the same to a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from convstem.registry.stem_spec import StemSpec
from convstem.stem.carry import carry
from convstem.stem.pixels import normalised_range

_logger = logging.getLogger(__name__)


def transplant_state_dict(
    state_dict: Mapping[str, Tensor],
    stem: StemSpec,
    mean: Sequence[float],
    std: Sequence[float],
    in_chans: int = 3,
) -> dict[str, Tensor]:
    """Return a patchify ViT's checkpoint in timm's layout with its patch embedding transplanted.

    A kernel of another size is resampled to the stem's patch, and adapted to ``in_chans``, as timm would.

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
    known = normalised_range(mean, std, in_chans)
    state, _ = carry(weight, bias, stem, known and known[0])
    return {**rest, **{f"patch_embed.backbone.{key}": tensor for key, tensor in state.items()}}
