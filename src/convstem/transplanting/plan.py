"""Which linear map of the patch each layer of a conv stem carries, so that the last one yields the embedding.

A layer's *content* is a linear function of the pixels under it. ReLU passes only what is positive, so a content
costs one channel in range (shifted) or two for every input (with both signs). A layer with room for two copies every
pixel ("identity"), or computes what the embedding takes from its pixels ("embedding"), whichever fits; one without
copies what it can, or keeps the directions that matter most to the embedding ("reduced"), which loses nothing when it
has as many channels as there are independent filters. All is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convstem.registry.stem_spec import StemSpec
from convstem.transplanting.contents import apply_rows, congruence, regress, tile
from convstem.transplanting.reduction import count_paired, reduce_rank
from convstem.transplanting.statistics import PatchStatistics, sub_covariance

LOSSLESS = 1e-10
"""Relative loss below which a reduced layer counts as lossless (float64 round-off is about 1e-14)."""


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What one layer carries, before shifts and norms."""

    taps: Tensor
    """[rank, previous rank, stride, stride]: this layer's content from the previous layer's."""
    content: Tensor
    """[rank, in_chans, q, q]: this layer's content from the q x q pixels under it."""
    needed: int
    """Channels that would carry everything: previous rank times stride squared."""
    width: int
    """Channels the stem has."""
    paired: int
    """How many contents, from the first on, are carried with both signs."""
    lossless: bool
    """Whether nothing the embedding needs is lost here."""
    kind: str
    """``identity``, ``embedding`` or ``reduced``."""

    @property
    def rank(self) -> int:
        """Contents carried."""
        return self.content.shape[0]

    @property
    def used(self) -> int:
        """Channels that carry content: one for each, and one more for each that is paired."""
        return self.rank + self.paired

    @property
    def reduced(self) -> bool:
        """Whether the layer carries mixtures of contents, less than everything."""
        return self.kind != "identity"

    @property
    def split(self) -> bool:
        """Whether every content is carried with both signs, hence without a shift."""
        return self.paired == self.rank


def plan_layers(weight: Tensor, stem: StemSpec, statistics: PatchStatistics, coarse: bool = False) -> list[LayerPlan]:
    """Plan every layer of a stem in turn.

    Args:
        weight: patch embedding [embed_dim, in_chans, p, p], float64.
        stem: the stem; its strides multiply to p.
        statistics: of p x p patches, its covariance positive definite.
        coarse: whether reduced layers are planned for bfloat16 arithmetic and shifts by the statistics.
    """
    plans: list[LayerPlan] = []
    content = torch.eye(weight.shape[1], dtype=weight.dtype)[:, :, None, None]
    for layer in stem.layers():
        plans.append(_plan_layer(weight, content, layer.channels, layer.stride, statistics, coarse))
        content = plans[-1].content
    return plans


def _plan_layer(
    weight: Tensor, content: Tensor, width: int, stride: int, statistics: PatchStatistics, coarse: bool
) -> LayerPlan:
    """Plan one layer on top of the previous layer's ``content`` [previous rank, in_chans, q, q]."""
    window = tile(content, stride)
    needed, places = len(window), (weight.shape[-1] // window.shape[-1]) ** 2
    both_signs = 2 * len(weight) * places <= width  # of the embedding's share in each place
    if 2 * needed <= width or (needed <= width and not both_signs):
        taps = _as_taps(torch.eye(needed, dtype=weight.dtype), stride)
        return LayerPlan(taps, window, needed, width, count_paired(needed, width), True, "identity")
    demand = _demand(weight, window, statistics)
    if both_signs:
        taps = _as_taps(demand, stride)
        return LayerPlan(taps, apply_rows(demand, window), needed, width, len(demand), True, "embedding")
    block = sub_covariance(statistics, window.shape[-1])
    rows, paired, lost = reduce_rank(demand, congruence(window, block), width, coarse)
    taps = _as_taps(rows, stride)
    return LayerPlan(taps, apply_rows(rows, window), needed, width, paired, lost <= LOSSLESS, "reduced")


def _as_taps(rows: Tensor, stride: int) -> Tensor:
    """View rows [rank, previous rank * stride * stride] as taps [rank, previous rank, stride, stride]."""
    return rows.view(len(rows), -1, stride, stride)


def _demand(weight: Tensor, window: Tensor, statistics: PatchStatistics) -> Tensor:
    """Express the embedding in a layer's ``window`` contents, once for each place the window takes.

    Returns:
        [embed_dim * places, needed].
    """
    embed_dim, needed = len(weight), len(window)
    tiles = weight.shape[-1] // window.shape[-1]
    coefficients = regress(weight, tile(window, tiles), statistics)
    by_place = coefficients.view(embed_dim, needed, tiles**2).transpose(1, 2)
    return by_place.reshape(embed_dim * tiles**2, needed)
