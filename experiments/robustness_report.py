"""Table and picture of experiments/robustness.py, from the folders of its runs."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from convstem.files.writing import write_whole
from experiments.cifar10.checkpoints import read_log
from experiments.cifar10.models import STEMS, pflop
from experiments.cifar10.settings import precision_of
from experiments.cifar10_evidence_report import COLOURS
from experiments.machine import machines
from experiments.seeds import paired, spread, verdict

FIGURES, TABLE, PICTURE = "robustness.json", "results.txt", "robustness.png"
ATTACKS = ("clean", "PGD-50", "AutoAttack")
SQUARE = "Square's iterations"

Found = dict[str, dict[int, dict[str, float]]]
"""Accuracy in per cent by stem, seed and attack."""


def read_figures(out: Path) -> tuple[dict[str, int], Found]:
    """Return on how many images each attack ran, and the figures of the finished runs, in the order of the stems.

    Raises:
        ValueError: runs were attacked differently.
    """
    counts: dict[str, int] = {}
    found: Found = {}
    for path in sorted((out / "runs").glob(f"*/{FIGURES}"), key=lambda path: STEMS.index(stem_and_seed(path)[0])):
        stem, seed = stem_and_seed(path)
        record = json.loads(path.read_text(encoding="utf-8"))
        if counts not in ({}, record["counts"]):
            raise ValueError(f"all runs need the same attacks; {path} has {record['counts']}, others have {counts}")
        counts = record["counts"]
        found.setdefault(stem, {})[seed] = record["figures"]
    return counts, found


def stem_and_seed(path: Path) -> tuple[str, int]:
    """Return what the folder of a run is named after: ``STEM-SEED``."""
    stem, seed = path.parent.name.rsplit("-", 1)
    return stem, int(seed)


def to_text(out: Path, counts: dict[str, int], figures: Found) -> str:
    """Return the report."""
    if not figures:
        return "no run has finished yet\n"
    lines = [
        "CIFAR-10 accuracy (%) of adversarially trained models; mean +- sample deviation over seeds",
        ", ".join(f"{name} on {counts[name]}" for name in ATTACKS) + f" images; {SQUARE}: {counts[SQUARE]}",
    ]
    lines += ["", f"{'stem':<12}{'runs':>5}" + "".join(f"{name:>18}" for name in ATTACKS)]
    for stem, runs in figures.items():
        cells = "".join(f"{spread(run[name] for run in runs.values()):>18}" for name in ATTACKS)
        lines.append(f"{stem:<12}{len(runs):>5}{cells}")
    lines += ["", "conv stem minus its twin (points), paired by seed"]
    for stem, name in product(STEMS[1:], ATTACKS):
        conv, twin = ({seed: run[name] for seed, run in figures.get(s, {}).items()} for s in ("conv", stem))
        if gain := paired(conv, twin):
            lines.append(verdict(f"{name}, against {stem}", gain))
    return "\n".join([*lines, "", *circumstances(out, figures)]) + "\n"


def circumstances(out: Path, figures: Found) -> list[str]:
    """Return how the models were trained, on what, and for how long."""
    heads = [read_log(out / "runs" / f"{stem}-{seed}")[0] for stem, runs in figures.items() for seed in runs]
    shared = heads[0]["settings"]
    hours, work = sum(head["cpu_hours"] for head in heads), sum(map(pflop, heads))
    return [
        f"{shared['epochs']} epochs; attack of {shared['attack_steps']} steps within {shared['attack_radius']:g}/255; "
        f"{shared['opt']}, {shared['lr']:g}; batch {shared['batch_size']}; {precision_of(shared)}",
        f"{hours:.1f} hours of processor time and {work:.1f} PFLOP in {len(heads)} trainings",
        *machines(heads),
    ]


def plot(figures: Found, path: Path) -> None:
    """Draw the accuracy under each attack: a dot for each seed, a column for each stem."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for column, (stem, runs) in enumerate(figures.items()):
        points: list[Any] = [(place + 0.15 * (column - 1), run[name])
                             for place, name in enumerate(ATTACKS) for run in runs.values()]  # fmt: skip
        axes.plot(*zip(*points, strict=True), "o", color=COLOURS[stem], alpha=0.7, label=stem)
    axes.set(xticks=range(len(ATTACKS)), xticklabels=ATTACKS, ylabel="test accuracy, %", xlim=(-0.5, 2.5))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(out: Path) -> None:
    """Print the table of a folder, and write it and the picture there."""
    counts, figures = read_figures(out)
    text = to_text(out, counts, figures)
    write_whole(out / TABLE, lambda path: path.write_text(text, encoding="utf-8"))
    if figures:
        plot(figures, out / PICTURE)
    print(text, end="")
