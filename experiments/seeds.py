"""Statistics over seeds for the reports: mean and spread, paired differences, the line of a claim."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable

Scores = dict[int, float]
"""By seed."""


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Return mean and sample standard deviation as text; empty for no values."""
    values = list(values)
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}" if values else ""


def paired(scores: Scores, other: Scores) -> Scores:
    """Return scores minus other for the seeds that both have."""
    return {seed: scores[seed] - other[seed] for seed in sorted({*scores} & {*other})}


def interval(values: Collection[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean, by Student's t; needs two values or more."""
    from scipy import stats

    error = statistics.stdev(values) / len(values) ** 0.5
    half = error * float(stats.t.ppf(0.975, len(values) - 1))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def with_interval(values: Collection[float], digits: int = 2) -> str:
    """Return mean and spread as text and, for two values or more, the mean's 95 % confidence interval."""
    low_high = f" [{{:.{digits}f}}, {{:.{digits}f}}]".format(*interval(values)) if len(values) > 1 else ""
    return spread(values, digits) + low_high


def verdict(name: str, differences: Scores) -> str:
    """Return the line of a claim: mean difference in its favour, how many seeds agree, and the mean's interval."""
    values = differences.values()
    line = f"{name:<64}{spread(values):>16}   {sum(value > 0 for value in values)} of {len(values)} seeds"
    return line + (" (95 %: {:.1f} to {:.1f})".format(*interval(values)) if len({*values}) > 1 else "")
