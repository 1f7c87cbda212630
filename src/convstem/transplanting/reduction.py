"""Chooses what a layer that is too narrow carries: the mixtures of contents that matter most to the embedding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DATA_SIGMAS = 12.0
"""Standard deviations below its mean at which a content shifted by the statistics may be cut off: photographs have
heavier tails than their covariance tells."""


SHIFT_NOISE = (2 * DATA_SIGMAS * 2**-9 / math.sqrt(3)) ** 2
"""Variance that bfloat16 adds to a content of unit variance shifted that far: twice the rounding of one activation,
because the weights that read it are rounded as well."""


def count_paired(rank: int, width: int) -> int:
    """Return how many contents to carry with both signs: all if there is room, else none."""
    return rank if 2 * rank <= width else 0


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
    rank, paired = basis.shape[1], count_paired(basis.shape[1], width)
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
