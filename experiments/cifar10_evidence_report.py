"""Table and plots of experiments/cifar10_evidence.py, from the summary.csv files that timm's train.py wrote."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

COLOURS = {"conv": "tab:blue", "patchify": "tab:orange"}

Key = tuple[str, str, str, float]
"""Model, optimizer, stem and learning rate: what is averaged over seeds."""


@dataclass(frozen=True)
class Curve:
    """One finished or unfinished run: test accuracy in per cent after each epoch."""

    key: Key
    seed: int
    accuracy: tuple[float, ...]
    diverged: bool
    params: int


def read_curve(folder: Path) -> Curve | None:
    """Return the run in a folder named ``MODEL-STEM-OPTIMIZER-RATE-SEED``, or None if it has no epoch yet."""
    model, stem, optimizer, rest = folder.name.split("-", 3)
    rate, seed = rest.rsplit("-", 1)
    with open(folder / "summary.csv", encoding="utf-8") as file:
        rows = {int(row["epoch"]): row for row in csv.DictReader(file) if row["epoch"].isdigit()}  # headers may repeat
    if not rows:
        return None
    accuracy = tuple(float(rows[epoch]["eval_top1"]) for epoch in sorted(rows))
    diverged = any(math.isnan(float(row["train_loss"])) for row in rows.values())
    params = re.search(r"param count:(\d+)", (folder / "train.log").read_text(encoding="utf-8"))
    return Curve((model, optimizer, stem, float(rate)), int(seed), accuracy, diverged, int(params[1]))


def read_runs(out: Path) -> dict[Key, list[Curve]]:
    """Return the longest runs, grouped over seeds; shorter ones are still under way."""
    curves = [read_curve(path.parent) for path in sorted((out / "runs").glob("*/summary.csv"))]
    found = [curve for curve in curves if curve is not None]
    longest = max((len(curve.accuracy) for curve in found), default=0)
    groups: dict[Key, list[Curve]] = defaultdict(list)
    for curve in found:
        if len(curve.accuracy) == longest:
            groups[curve.key].append(curve)
    return dict(sorted(groups.items()))


def final(curves: Iterable[Curve]) -> float:
    """Return the mean accuracy after the last epoch."""
    return statistics.fmean(curve.accuracy[-1] for curve in curves)


def mean_curve(curves: list[Curve]) -> list[float]:
    """Return the mean accuracy after each epoch."""
    return [statistics.fmean(values) for values in zip(*(curve.accuracy for curve in curves), strict=True)]


def cell(curves: list[Curve]) -> str:
    """Return mean, spread over seeds and a mark for a loss that became NaN."""
    values = [curve.accuracy[-1] for curve in curves]
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{final(curves):.2f}{spread}{' (nan)' if any(curve.diverged for curve in curves) else ''}"


def settings(runs: dict[Key, list[Curve]]) -> list[tuple[str, str]]:
    """Return the pairs of model and optimizer."""
    return sorted({key[:2] for key in runs})


def sweep(runs: dict[Key, list[Curve]], setting: tuple[str, str], stem: str) -> dict[float, list[Curve]]:
    """Return the runs of one model, optimizer and stem by learning rate."""
    return {key[3]: curves for key, curves in runs.items() if key[:3] == (*setting, stem)}


def best(rates: dict[float, list[Curve]]) -> float:
    """Return the learning rate with the highest final accuracy."""
    return max(rates, key=lambda rate: final(rates[rate]))


def epochs_to(curve: list[float], accuracy: float) -> str:
    """Return after how many epochs a curve reaches an accuracy."""
    return next((str(epoch) for epoch, value in enumerate(curve, 1) if value >= accuracy), "never")


def setting_lines(runs: dict[Key, list[Curve]], setting: tuple[str, str]) -> list[str]:
    """Return the table of one model and optimizer."""
    sweeps = {stem: rates for stem in COLOURS if (rates := sweep(runs, setting, stem))}
    columns = sorted({rate for rates in sweeps.values() for rate in rates})
    lines = ["", f"{setting[0]}, {setting[1]}", f"{'stem':<10}" + "".join(f"{f'lr {rate:g}':>18}" for rate in columns)]
    for stem, rates in sweeps.items():
        lines.append(f"{stem:<10}" + "".join(f"{cell(rates[rate]) if rate in rates else '-':>18}" for rate in columns))
    for stem, rates in sweeps.items():
        values = [final(curves) for curves in rates.values()]
        size = f"{next(iter(rates.values()))[0].params:,} parameters"
        spread = max(values) - min(values)
        lines.append(f"{stem} ({size}): best {max(values):.2f}, worst {min(values):.2f}, range {spread:.2f}")
    if len(sweeps) == len(COLOURS):
        target = final(sweeps["patchify"][best(sweeps["patchify"])])
        reached = epochs_to(mean_curve(sweeps["conv"][best(sweeps["conv"])]), target)
        lines.append(f"epochs for the conv stem to reach patchify's best final accuracy: {reached}")
    return lines


def to_text(runs: dict[Key, list[Curve]]) -> str:
    """Return the report."""
    epochs = max((len(curve.accuracy) for curves in runs.values() for curve in curves), default=0)
    seeds = sorted({curve.seed for curves in runs.values() for curve in curves})
    head = f"CIFAR-10 test accuracy (%) after {epochs} epochs, from scratch; mean +- deviation over seeds {seeds}"
    return "\n".join([head, *(line for setting in settings(runs) for line in setting_lines(runs, setting))]) + "\n"


def circumstances(out: Path) -> str:
    """Return what all runs share, and the machine and versions of this report."""
    shared = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    images = " and ".join(f"{shared[f'{part}_images'] or 'all'} {part}" for part in ("train", "test"))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm"))
    return (
        f"{images} images (the first of each class), batch {shared['batch_size']}; timm's train.py, unmodified\n"
        f"{platform.machine()}, {os.cpu_count()} cores; python {platform.python_version()}, {packages}"
    )


def plot(runs: dict[Key, list[Curve]], path: Path) -> None:
    """Draw, per model and optimizer, accuracy over epochs at the best rate, and final accuracy over the rate."""
    import matplotlib.pyplot as plt

    rows = settings(runs)
    figure, axes = plt.subplots(len(rows), 2, figsize=(10, 3.2 * len(rows)), layout="constrained", squeeze=False)
    for (left, right), setting in zip(axes, rows, strict=True):
        for stem, colour in COLOURS.items():
            rates = sweep(runs, setting, stem)
            if not rates:
                continue
            rate = best(rates)
            curve = mean_curve(rates[rate])
            left.plot(range(1, len(curve) + 1), curve, color=colour, marker=".", label=f"{stem}, lr {rate:g}")
            right.plot(list(rates), [final(curves) for curves in rates.values()], color=colour, marker="o", label=stem)
        left.set(title=f"{setting[0]}, {setting[1]}", xlabel="epoch", ylabel="test accuracy, %")
        right.set(title="final accuracy over learning rate", xlabel="learning rate", xscale="log")
        for place in (left, right):
            place.grid(alpha=0.25)
            place.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(out: Path) -> None:
    """Print the table, and write it and the plots beside the runs."""
    runs = read_runs(out)
    if not runs:
        raise SystemExit(f"{out / 'runs'} has no summary.csv with a finished epoch")
    text = f"{to_text(runs)}\n{circumstances(out)}\n"
    (out / "results.txt").write_text(text, encoding="utf-8")
    plot(runs, out / "curves.png")
    print(text, end="")
