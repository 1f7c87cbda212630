"""Table, claims and plots of experiments/cifar10_evidence.py, from the logs of its runs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.cifar10.checkpoints import LOG, read_log
from experiments.cifar10.models import STEMS, pflop
from experiments.cifar10.settings import precision_of
from experiments.cifar10.sweep import DIVERGED
from experiments.machine import in_words

CHANCE = 10.0
"""Accuracy, in per cent, of a run whose loss was lost."""

PICTURE = "curves.png"

COLOURS = dict(zip(STEMS, ("tab:blue", "tab:orange", "tab:red"), strict=True))

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


def spread(values: Iterable[float]) -> str:
    """Return mean and sample standard deviation as text."""
    values = list(values)
    deviation = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def cell(curves: Mapping[int, Curve]) -> str:
    """Return mean, spread over seeds, and how many runs were lost."""
    lost = sum(curve.diverged for curve in curves.values())
    return spread(curve.accuracy[-1] for curve in curves.values()) + (f" ({lost} lost)" if lost else "")


def sweep(runs: Runs, model: str, optimizer: str, stem: str) -> dict[float, dict[int, Curve]]:
    """Return the runs of one model, optimizer and stem by learning rate."""
    return {key[3]: curves for key, curves in runs.items() if key[:3] == (model, optimizer, stem)}


def best(rates: Mapping[float, Mapping[int, Curve]]) -> Mapping[int, Curve]:
    """Return the runs of the learning rate with the highest final accuracy."""
    return max(rates.values(), key=final)


def best_of_seeds(rates: Mapping[float, Mapping[int, Curve]]) -> dict[int, float]:
    """Return, by seed, the final accuracy at the rate that is best on average."""
    return {seed: curve.accuracy[-1] for seed, curve in best(rates).items()}


def ranges(rates: Mapping[float, Mapping[int, Curve]]) -> dict[int, float]:
    """Return, by seed, the best minus the worst final accuracy over rates; only seeds that all rates have."""
    seeds = set.intersection(*(set(curves) for curves in rates.values()))
    finals = {seed: [curves[seed].accuracy[-1] for curves in rates.values()] for seed in sorted(seeds)}
    return {seed: max(values) - min(values) for seed, values in finals.items()}


def epochs_to(curve: Sequence[float], accuracy: float) -> int:
    """Return after how many epochs a curve reaches an accuracy; one more than it has if never."""
    return next((epoch for epoch, value in enumerate(curve, 1) if value >= accuracy), len(curve) + 1)


def verdict(name: str, differences: Mapping[int, float]) -> str:
    """Return a claim's line: the difference in favour of the conv stem, paired by seed, and how many seeds agree."""
    won = sum(value > 0 for value in differences.values())
    return f"{name:<64}{spread(differences.values()):>16}   {won} of {len(differences)} seeds"


def paired(conv: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """Return conv minus other for the seeds that both have."""
    return {seed: conv[seed] - other[seed] for seed in sorted({*conv} & {*other})}


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
        smaller = paired(*map(ranges, (twin, conv)))
        if len(conv) > 1 and smaller:
            lines.append(verdict(f"{optimizer}: smaller range over {len(conv)} rates", smaller))
        ours, theirs = best(conv), best(twin)
        epochs = len(next(iter(theirs.values())).accuracy)
        early = {s: epochs - epochs_to(ours[s].accuracy, theirs[s].accuracy[-1]) for s in sorted({*ours} & {*theirs})}
        lines.append(verdict(f"{optimizer}: epochs sooner at the twin's final accuracy, of {epochs}", early))
        gaps[optimizer] = best_of_seeds(conv), best_of_seeds(twin)
    if {"adamw", "sgd"} <= set(gaps):
        conv_gap, twin_gap = (paired(gaps["adamw"][i], gaps["sgd"][i]) for i in range(2))
        lines.append(verdict("smaller gap from AdamW to SGD", paired(twin_gap, conv_gap)))
    return [f"{model}, conv stem against {other}", *lines, ""] if lines else []


def table(runs: Runs, model: str, optimizer: str) -> list[str]:
    """Return the table of one model and optimizer."""
    sweeps = {stem: rates for stem in STEMS if (rates := sweep(runs, model, optimizer, stem))}
    columns = sorted({rate for rates in sweeps.values() for rate in rates})
    lines = [f"{model}, {optimizer}", f"{'stem':<12}" + "".join(f"{f'lr {rate:g}':>18}" for rate in columns)]
    for stem, rates in sweeps.items():
        lines.append(f"{stem:<12}" + "".join(f"{cell(rates[rate]) if rate in rates else '-':>18}" for rate in columns))
    return [*lines, ""]


def sizes(runs: Runs) -> list[str]:
    """Return the size and cost of each model."""
    heads = {key[0::2]: curve.head for key, curves in runs.items() for curve in curves.values() if curve.head}
    return [f"{model}, {stem}: {head['parameters']:,} parameters, {head['gmacs']:.4f} GMACs"
            for (model, stem), head in sorted(heads.items())]  # fmt: skip


def circumstances(runs: Runs) -> list[str]:
    """Return what all runs share, and on what they ran for how long."""
    heads = [curve.head for curves in runs.values() for curve in curves.values() if curve.head]
    shared, info = heads[0]["settings"], heads[0]["environment"]
    hours, work = sum(head["cpu_hours"] for head in heads), sum(map(pflop, heads))
    images, precision = shared["train_images"] or "all", precision_of(shared)
    return [
        f"{shared['epochs']} epochs of {images} training images, all test images; batch {shared['batch_size']}, "
        f"label smoothing {shared['smoothing']:g}, clipped at {shared['clip_grad']:g}; {precision}",
        f"{in_words(info)}; {hours:.1f} hours of processor time and {work:.1f} PFLOP in {len(heads)} runs",
    ]


def to_text(runs: Runs) -> str:
    """Return the report."""
    models, optimizers = (sorted({key[index] for key in runs}) for index in range(2))
    seeds = sorted({seed for curves in runs.values() for seed in curves})
    lines = [f"CIFAR-10 test accuracy (%) from scratch; mean +- sample deviation over seeds {seeds}", ""]
    lines += [line for model in models for name in optimizers for line in table(runs, model, name)]
    lines += [
        "In favour of the conv stem (points, or epochs), paired by seed; shown where all seeds agree",
        "",
    ]
    lines += [line for model in models for other in STEMS[1:] for line in claims(runs, model, other)]
    return "\n".join([*lines, *sizes(runs), *circumstances(runs)]) + "\n"


def plot(runs: Runs, path: Path) -> None:
    """Draw, per model and optimizer, accuracy over epochs at the best rate, and final accuracy over the rate."""
    import matplotlib.pyplot as plt

    rows = sorted({key[:2] for key in runs})
    figure, axes = plt.subplots(len(rows), 2, figsize=(10, 3.2 * len(rows)), layout="constrained", squeeze=False)
    for (left, right), (model, optimizer) in zip(axes, rows, strict=True):
        for stem, colour in COLOURS.items():
            rates = sweep(runs, model, optimizer, stem)
            for seed, curve in best(rates).items() if rates else ():
                label = stem if seed == min(best(rates)) else None
                left.plot(range(1, len(curve.accuracy) + 1), curve.accuracy, color=colour, alpha=0.7, label=label)
            right.plot(list(rates), [final(curves) for curves in rates.values()], color=colour, marker="o", label=stem)
        left.set(title=f"{model}, {optimizer}: at the best rate", xlabel="epoch", ylabel="test accuracy, %")
        right.set(title="final accuracy over learning rate", xlabel="learning rate", xscale="log")
        for place in (left, right):
            place.grid(alpha=0.25)
            place.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(out: Path) -> None:
    """Print the table, and write it and the plots beside the runs."""
    runs = read_runs(out)
    if not any(curve.head for curves in runs.values() for curve in curves.values()):
        raise SystemExit(f"{out / 'runs'} has no finished run yet")
    text = to_text(runs)
    (out / "results.txt").write_text(text, encoding="utf-8")
    plot(runs, out / PICTURE)
    print(text, end="")
