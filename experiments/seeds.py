"""Figures of several seeds, as the reports print them: mean and spread, paired differences, a claim's line."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

Scores = dict[int, float]
"""By seed."""


def spread(values: Iterable[float]) -> str:
    """Return mean and sample standard deviation as text."""
    values = list(values)
    deviation = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def paired(scores: Scores, other: Scores) -> Scores:
    """Return scores minus other for the seeds that both have."""
    return {seed: scores[seed] - other[seed] for seed in sorted({*scores} & {*other})}


def verdict(name: str, differences: Scores) -> str:
    """Return a claim's line: the differences in its favour, and how many seeds agree."""
    won = sum(value > 0 for value in differences.values())
    return f"{name:<64}{spread(differences.values()):>16}   {won} of {len(differences)} seeds"
