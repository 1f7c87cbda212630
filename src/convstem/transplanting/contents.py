"""Algebra of contents: linear functions of the pixels under a position, stated as weights [rank, in_chans, q, q].

Where a content copies one pixel, products with matrices of pixels become look-ups, which are exact and fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convstem.transplanting.statistics import PatchStatistics, sub_covariance, sub_mean


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
