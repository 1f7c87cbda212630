"""The finished runs of experiments/cifar10_evidence.py, and what they say about each claim of the paper."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.cifar10.checkpoints import LOG, read_log
from experiments.cifar10.sweep import DIVERGED
from experiments.seeds import Scores, paired, verdict

CHANCE = 10.0
"""Accuracy, in per cent, of a run whose loss was lost."""

Key = tuple[str, str, str, float]
"""Model, optimizer, stem and learning rate."""


@dataclass(frozen=True)
class Curve:
    """One finished run: test accuracy in per cent after each epoch, and the head of its log."""

    accuracy: tuple[float, ...]
    diverged: bool
    head: Mapping[str, Any]


Runs = dict[Key, dict[int, Curve]]
"""By what is compared, then by seed."""


def read_curve(folder: Path) -> Curve:
    """Return the run in a folder; one that diverged stays at chance."""
    head, rows = read_log(folder) if (folder / LOG).exists() else ({}, [])
    lost = (folder / DIVERGED).exists()
    curve = [row["accuracy"] for row in rows]
    return Curve((*curve, CHANCE) if lost else tuple(curve), lost, head)


def read_runs(out: Path) -> Runs:
    """Return the finished runs; those under way have shorter curves."""
    groups: Runs = defaultdict(dict)
    for folder in sorted(path for path in (out / "runs").glob("*") if path.is_dir()):
        model, stem, optimizer, rest = folder.name.split("-", 3)
        rate, seed = rest.rsplit("-", 1)
        curve = read_curve(folder)
        if curve.diverged or (curve.head and len(curve.accuracy) == curve.head["settings"]["epochs"]):
            groups[model, optimizer, stem, float(rate)][int(seed)] = curve
    return dict(sorted(groups.items()))


def final(curves: Mapping[int, Curve]) -> float:
    """Return the mean accuracy after the last epoch, over seeds."""
    return statistics.fmean(curve.accuracy[-1] for curve in curves.values())


def sweep(runs: Runs, model: str, optimizer: str, stem: str) -> dict[float, dict[int, Curve]]:
    """Return the runs of one model, optimizer and stem by learning rate."""
    return {key[3]: curves for key, curves in runs.items() if key[:3] == (model, optimizer, stem)}


def best(rates: Mapping[float, Mapping[int, Curve]]) -> Mapping[int, Curve]:
    """Return the runs of the learning rate with the highest final accuracy."""
    return max(rates.values(), key=final)


def best_of_seeds(rates: Mapping[float, Mapping[int, Curve]]) -> Scores:
    """Return, by seed, the final accuracy at the rate that is best on average."""
    return {seed: curve.accuracy[-1] for seed, curve in best(rates).items()}


NEAR = 10.0
"""Points below the best rate up to which a rate still counts as near."""

OVER_RATES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean accuracy": statistics.fmean,
    "smaller range": lambda finals: min(finals) - max(finals),
    f"rates less than {NEAR:g} points below the best": lambda finals: sum(max(finals) - x < NEAR for x in finals),
}
"""What the final accuracies over all rates say about care with the rate: more is better."""


def over_rates(rates: Mapping[float, Mapping[int, Curve]], measure: Callable[[Sequence[float]], float]) -> Scores:
    """Return, by seed, a measure of the final accuracies over rates; only seeds that all rates have."""
    seeds = set.intersection(*(set(curves) for curves in rates.values()))
    return {seed: measure([curves[seed].accuracy[-1] for curves in rates.values()]) for seed in sorted(seeds)}


def epochs_to(curve: Sequence[float], accuracy: float) -> int:
    """Return after how many epochs a curve reaches an accuracy; one more than it has if never."""
    return next((epoch for epoch, value in enumerate(curve, 1) if value >= accuracy), len(curve) + 1)


def shared_rates(*sweeps: Mapping[float, Any]) -> list[dict[float, Any]]:
    """Return sweeps with the rates that all have, so that an unfinished table compares like with like."""
    return [{rate: rates[rate] for rate in rates if all(rate in other for other in sweeps)} for rates in sweeps]


def claims(runs: Runs, model: str, other: str) -> list[str]:
    """Return the paper's claims about a model against one of its twins, each with its figure."""
    lines, gaps = [], {}
    for optimizer in sorted({key[1] for key in runs}):
        conv, twin = shared_rates(*(sweep(runs, model, optimizer, stem) for stem in ("conv", other)))
        if not conv:
            continue
        lines.append(verdict(f"{optimizer}: accuracy at the best rate", paired(*map(best_of_seeds, (conv, twin)))))
        for name, measure in OVER_RATES.items() if len(conv) > 1 else ():
            if better := paired(*(over_rates(rates, measure) for rates in (conv, twin))):
                lines.append(verdict(f"{optimizer}: {name}, over {len(conv)} rates", better))
        ours, theirs = best(conv), best(twin)
        epochs = len(next(iter(theirs.values())).accuracy)
        early = {s: epochs - epochs_to(ours[s].accuracy, theirs[s].accuracy[-1]) for s in sorted({*ours} & {*theirs})}
        lines.append(verdict(f"{optimizer}: epochs sooner at the twin's final accuracy, of {epochs}", early))
        gaps[optimizer] = best_of_seeds(conv), best_of_seeds(twin)
    if {"adamw", "sgd"} <= set(gaps):
        conv_gap, twin_gap = (paired(gaps["adamw"][i], gaps["sgd"][i]) for i in range(2))
        lines.append(verdict("smaller gap from AdamW to SGD", paired(twin_gap, conv_gap)))
    return [f"{model}, conv stem against {other}", *lines, ""] if lines else []
