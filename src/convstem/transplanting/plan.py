"""Which linear map of the patch each layer of a conv stem carries, so that the last one yields the embedding.

A layer's *content* is a linear function of the pixels under it. ReLU passes only what is positive, so a content
costs one channel in range (shifted) or two for every input (with both signs). A layer with room for two copies every
pixel ("identity"), or computes what the embedding takes from its pixels ("embedding"), whichever fits; one without
copies what it can, or keeps the directions that matter most to the embedding ("reduced"), which loses nothing when it
has as many channels as there are independent filters. All is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convstem.registry.stem_spec import StemSpec
from convstem.transplanting.statistics import PatchStatistics, sub_covariance

PIXEL_FLOOR = 1e-6
"""White noise added to a covariance, as a share of its mean variance: below the 2e-5 that 8-bit rounding adds
to an ImageNet pixel, and enough to invert the covariance of a handful of images."""


LOSSLESS = 1e-10
"""Relative loss below which a reduced layer counts as lossless (float64 round-off is about 1e-14)."""


DATA_SIGMAS = 12.0
"""Standard deviations below its mean at which a content shifted by the statistics may be cut off: photographs have
heavier tails than their covariance tells."""


SHIFT_NOISE = (2 * DATA_SIGMAS * 2**-9 / math.sqrt(3)) ** 2
"""Variance that bfloat16 adds to a content of unit variance shifted that far: twice the rounding of one activation,
because the weights that read it are rounded as well."""


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
        """Channels in use, before any are split by sign."""
        return self.content.shape[0]

    @property
    def reduced(self) -> bool:
        """Whether the layer carries mixtures of contents, less than everything."""
        return self.kind != "identity"

    @property
    def split(self) -> bool:
        """Whether every content is carried with both signs, hence without a shift."""
        return self.paired == self.rank


def floored(covariance: Tensor) -> Tensor:
    """Return a covariance with ``PIXEL_FLOOR`` of white noise added, hence positive definite."""
    result = covariance.clone()
    result.diagonal().add_(PIXEL_FLOOR * covariance.diagonal().mean() + torch.finfo(covariance.dtype).tiny)
    return result


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
        return LayerPlan(taps, window, needed, width, _paired(needed, width), True, "identity")
    demand = _demand(weight, window, statistics)
    if both_signs:
        taps = _as_taps(demand, stride)
        return LayerPlan(taps, apply_rows(demand, window), needed, width, len(demand), True, "embedding")
    block = sub_covariance(statistics, window.shape[-1])
    rows, paired, lost = reduce_rank(demand, congruence(window, block), width, coarse)
    taps = _as_taps(rows, stride)
    return LayerPlan(taps, apply_rows(rows, window), needed, width, paired, lost <= LOSSLESS, "reduced")


def _paired(rank: int, width: int) -> int:
    """Return how many contents to carry with both signs: all if there is room, else none."""
    return rank if 2 * rank <= width else 0


def _as_taps(rows: Tensor, stride: int) -> Tensor:
    """View rows [rank, previous rank * stride * stride] as taps [rank, previous rank, stride, stride]."""
    return rows.view(len(rows), -1, stride, stride)


def tile(content: Tensor, tiles: int) -> Tensor:
    """Return ``content`` [rank, in_chans, q, q] at each place of a ``tiles`` x ``tiles`` grid.

    Returns:
        [rank * tiles * tiles, in_chans, tiles * q, tiles * q], index order (rank, row, column).
    """
    rank, in_chans, size, _ = content.shape
    placed = content.new_zeros(rank, tiles, tiles, in_chans, tiles, size, tiles, size)
    for row in range(tiles):
        for column in range(tiles):
            placed[:, row, column, :, row, :, column, :] = content
    return placed.view(rank * tiles**2, in_chans, tiles * size, tiles * size)


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


def regress(weight: Tensor, content: Tensor, statistics: PatchStatistics) -> Tensor:
    """Return the coefficients [embed_dim, rank] with which ``content`` best gives the embedding, mean square.

    Args:
        weight: [embed_dim, in_chans, p, p].
        content: [rank, in_chans, p, p], independent rows.
        statistics: of p x p patches: the metric.
    """
    pixels = copied_pixels(content)
    if pixels is not None:  # every pixel is there: an exact rearrangement, no solve
        return weight.flatten(1)[:, pixels]
    if torch.equal(content, weight):  # the embedding is there: the 1x1 is plus and minus identity
        return torch.eye(len(weight), dtype=weight.dtype)
    factor = torch.linalg.cholesky(statistics.covariance)
    sources, targets = content.flatten(1) @ factor, weight.flatten(1) @ factor
    coefficients: Tensor = torch.linalg.lstsq(sources.T, targets.T).solution
    return coefficients.T


def copied_pixels(content: Tensor) -> Tensor | None:
    """Return the pixel [rank] that each row of ``content`` copies, or None unless each is copied once."""
    rows = content.flatten(1)
    if rows.shape[0] != rows.shape[1]:
        return None
    largest, pixels = rows.max(1)
    copies = bool((largest == 1).all()) and int(rows.count_nonzero()) == len(rows)
    return pixels if copies else None


def congruence(content: Tensor, covariance: Tensor) -> Tensor:
    """Return the covariance [rank, rank] of ``content`` [rank, in_chans, q, q], given the pixels'."""
    pixels = copied_pixels(content)
    if pixels is not None:  # two products of a 3072 x 3072 matrix saved for patch 32
        return covariance[pixels][:, pixels]
    rows = content.flatten(1)
    return rows @ covariance @ rows.T


def apply_rows(rows: Tensor, content: Tensor) -> Tensor:
    """Return the mixtures ``rows`` [rank, n] of ``content`` [n, in_chans, q, q] as [rank, in_chans, q, q]."""
    pixels = copied_pixels(content)
    if pixels is None:
        return torch.einsum("rn,niyx->riyx", rows, content)
    mixed = torch.zeros_like(rows)
    mixed[:, pixels] = rows
    return mixed.view(len(rows), *content.shape[1:])


def reduce_rank(demand: Tensor, covariance: Tensor, width: int, coarse: bool = False) -> tuple[Tensor, int, float]:
    """Choose the mixtures of some contents from which the demanded outputs are best reconstructed.

    The subspace is reduced-rank regression's. Its basis is made of reconstructed contents: pixels, where the
    previous layers copy, which are compact and near the pixel range, so that the shifts that make them
    positive stay small. If ``coarse``, it is made of principal components, the largest with both signs.

    Args:
        demand: [outputs, n], the outputs as mixtures of the contents.
        covariance: [n, n], of the contents, positive definite.
        width: channels for the mixtures.
        coarse: whether to give up the least components for room to carry the largest without a shift.

    Returns:
        rows [rank, n], how many of them to carry with both signs, and the relative root-mean-square loss.

    Source: Izenman, "Reduced-rank regression for the multivariate linear model", J. Multivar. Anal. 5 (1975).
    """
    factor = torch.linalg.cholesky(covariance)
    whitened = demand @ factor
    basis = _right_singular(whitened, min(width, len(demand)))
    rank, paired = basis.shape[1], _paired(basis.shape[1], width)
    if coarse:
        rank, paired = balance((whitened @ basis).square().sum(0), width)
        basis = basis[:, :rank]
    kept = (whitened @ basis) @ basis.T
    lost = (whitened - kept).norm() / whitened.norm().clamp_min(torch.finfo(whitened.dtype).tiny)
    rows = torch.linalg.solve_triangular(factor.T, basis, upper=True).T
    if not coarse:
        reconstruction = factor @ basis  # [n, rank]: the contents from the whitened ones that are kept
        rows = reconstruction[pivots(reconstruction)] @ rows
    return rows, paired, float(lost)


def balance(energy: Tensor, width: int) -> tuple[int, int]:
    """Weigh components left out against the rounding of those shifted: each pair takes a channel from the rest.

    Args:
        energy: [components], of the outputs, largest first.
        width: channels.

    Returns:
        how many components to carry, and how many of these with both signs.
    """
    below = F.pad(energy.cumsum(0), (1, 0))  # energy of the first 0, 1, ... components
    paired = torch.arange(min(len(energy), width // 2) + 1)
    rank = (width - paired).clamp_max(len(energy))
    cost = below[-1] - below[rank] + SHIFT_NOISE * (below[rank] - below[paired])
    best = int(cost.argmin())
    return int(rank[best]), best


def _right_singular(matrix: Tensor, rank: int) -> Tensor:
    """Return the leading right singular directions [n, rank] of ``matrix`` [m, n], m >= rank, largest first."""
    wide = matrix.shape[0] < matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    leading: Tensor = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank]
    if not wide:
        return leading
    directions: Tensor = torch.linalg.qr(matrix.T @ leading).Q
    return directions


def pivots(matrix: Tensor) -> Tensor:
    """Choose r rows of ``matrix`` [n, r], n >= r, that span it well, by greedy Gram-Schmidt.

    Returns:
        row indices [r], ascending.
    """
    chosen: list[int] = []
    left = matrix.square().sum(1)  # squared norm of each row outside the span of those chosen
    span = matrix.new_zeros(matrix.shape[1], matrix.shape[1])
    for step in range(matrix.shape[1]):
        chosen.append(int(left.argmax()))
        row = matrix[chosen[-1]]
        for _ in range(2):  # once more for orthogonality in floating point
            row = row - span[:step].T @ (span[:step] @ row)
        span[step] = row / row.norm()
        left -= (matrix @ span[step]).square()
        left[chosen] = -1
    return torch.tensor(sorted(chosen))
