"""Runs, table and picture of experiments/transplant_gain.py."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from convstem.files.paths import write_whole
from experiments.cifar10.settings import precision_of
from experiments.machine import in_words
from experiments.runs import RUNS, append_line, read_lines
from experiments.seeds import Scores, paired, spread
from tools.dinov2_vit_small import ORIGIN

STARTS = ("patchify", "transplant", "new stem")
GAIN_AXIS = "points above the patchify model (linear up to 1, logarithmic beyond)"
COLOURS = {("transplant", "steps"): "tab:blue", ("transplant", "time"): "tab:cyan", ("new stem", "steps"): "tab:red"}

CONDITIONS, TABLE, PICTURE = "conditions.json", "results.txt", "gain.png"


@dataclass(frozen=True)
class Job:
    """One fine-tuning run to do."""

    start: str
    scope: str
    optimizer: str
    batch: int
    budget: str
    seed: int


@dataclass(frozen=True)
class Result:
    """The result of a run: accuracy in per cent, mean loss of the last steps, number of steps, processor time."""

    accuracy: float
    loss: float
    steps: int
    cpu_seconds: float


Done = Mapping[Job, Result]


def read_results(out: Path) -> dict[Job, Result]:
    """Return the finished runs of a folder."""
    kinds = [tuple(row.name for row in fields(kind)) for kind in (Job, Result)]
    rows = read_lines(out / RUNS)
    return {Job(**{n: row[n] for n in kinds[0]}): Result(**{n: row[n] for n in kinds[1]}) for row in rows}


def append_result(out: Path, job: Job, result: Result) -> None:
    """Save a finished run in a folder."""
    append_line(out / RUNS, asdict(job) | asdict(result))


def by_seed(done: Done, **wanted: Any) -> dict[int, Result]:
    """Return the results of one setting by seed."""
    return {job.seed: result for job, result in done.items()
            if all(getattr(job, name) == value for name, value in wanted.items())}  # fmt: skip


def groups(done: Done) -> Iterator[tuple[dict[str, Any], dict[int, Result], dict[int, float]]]:
    """Yield each setting, its runs by seed, and its start's gain in accuracy over the patchify model by seed."""
    keys = {(job.optimizer, job.batch, job.scope, STARTS.index(job.start), job.budget) for job in done}
    for optimizer, batch, scope, start, budget in sorted(keys):
        shared = {"optimizer": optimizer, "batch": batch, "scope": scope}
        found = by_seed(done, **shared, start=STARTS[start], budget=budget)
        base = by_seed(done, **shared, start=STARTS[0])
        scores, other = ({seed: run.accuracy for seed, run in runs.items()} for runs in (found, base))
        yield {**shared, "start": STARTS[start], "budget": budget}, found, paired(scores, other) if start else {}


def table(done: Done) -> Iterable[str]:
    """Yield the lines of the table: each start, and its gain over the patchify model of the same setting and seed."""
    columns = ("runs", "accuracy %", "minus patchify", "last loss", "steps", "processor s")
    yield line(("optimizer", "batch", "trained", "start", "equal"), columns)
    for setting, found, gains in groups(done):
        runs = list(found.values())
        cells = (
            len(runs), spread(run.accuracy for run in runs), spread(gains.values()),
            spread(run.loss for run in runs), runs[0].steps, f"{statistics.fmean(run.cpu_seconds for run in runs):.0f}",
        )  # fmt: skip
        yield line(setting.values(), cells)


def line(names: Iterable[object], cells: Iterable[object]) -> str:
    """Return a line of the table: names on the left, cells on the right."""
    left = "".join(f"{name!s:<{width}}" for name, width in zip(names, (11, 7, 15, 12, 8), strict=True))
    right = "".join(f"{cell!s:>{width}}" for cell, width in zip(cells, (5, 16, 16, 16, 7, 13), strict=True))
    return (left + right).rstrip()


def pflop(done: Done, gmacs: Mapping[str, float]) -> float:
    """Return the PFLOP of all runs' steps: two FLOP for each multiply-add, and three passes of the model per step.

    With a frozen trunk there are two passes, because its weights need no gradient. Evaluation is not counted.

    Args:
        done: the runs.
        gmacs: of a model on one image, by start.
    """
    passes = ((job, run.steps * job.batch * (3 if job.scope == "all" else 2)) for job, run in done.items())
    return sum(2e-6 * gmacs[job.start] * count for job, count in passes)


def to_text(conditions: Mapping[str, Any], done: Done) -> str:
    """Return the report."""
    settings, ratios = conditions["settings"], conditions["time_ratios"]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in settings["rates"].items())
    hours = sum(run.cpu_seconds for run in done.values()) / 3600
    origin = [ORIGIN] if settings["source"].startswith("dinov2") else []
    head = [
        f"Fine-tuning on CIFAR-10 from {settings['source']}: {conditions['accuracy']:.2f} % of the test images before",
        *origin,
        f"{in_words(conditions['environment'])}; {precision_of(settings)}; {hours:.1f} hours of processor time and "
        f"{pflop(done, conditions['gmacs']):.2f} PFLOP in {len(done)} runs",
        f"peak rates of batch 128: {rates}; layer-wise decay: {settings['layer_decay'] or 'none'}",
        "a step with a conv stem takes " + "; ".join(f"{ratio:.2f} times ({name})" for name, ratio in ratios.items()),
    ]
    return "\n".join([*head, "", *table(done)]) + "\n"


def read(out: Path) -> tuple[dict[str, Any], dict[Job, Result]]:
    """Return the conditions of a folder, and its finished runs."""
    return json.loads((out / CONDITIONS).read_text(encoding="utf-8")), read_results(out)


def at_the_better(*folders: Path) -> Iterable[str]:
    """Yield the gain of a transplant over the patchify model, each at its better rate in some folders."""
    best: dict[tuple[Any, ...], Scores] = {}
    for folder in folders:
        for setting, found, _ in groups(read_results(folder)):
            scores = {seed: run.accuracy for seed, run in found.items()}
            key = tuple(setting.values())
            best[key] = max(scores, best.get(key, scores), key=lambda scores: statistics.fmean(scores.values()))
    yield line(("optimizer", "batch", "trained", "start", "equal"), ("", "accuracy %", "minus patchify", "", "", ""))
    for key, scores in best.items():
        *shared, start, _ = key
        if start == "transplant":
            base = (*shared, "patchify", "steps")
            yield line(key, ("", spread(scores.values()), spread(paired(scores, best[base]).values()), "", "", ""))


def plot(done: Done, path: Path) -> None:
    """Draw the gain of each start over the patchify model: a dot per seed, a bar for the mean."""
    import matplotlib.pyplot as plt

    found = [(setting, list(gains.values())) for setting, _, gains in groups(done) if gains]
    names = list(dict.fromkeys(f"{s['optimizer']}, batch {s['batch']}, {s['scope']}" for s, _ in found))
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.5 * len(names)), layout="constrained")
    for setting, gains in found:
        kind = setting["start"], setting["budget"]
        row = names.index(f"{setting['optimizer']}, batch {setting['batch']}, {setting['scope']}")
        place = row + 0.2 * (list(COLOURS).index(kind) - 1)
        axes.plot(gains, [place] * len(gains), ".", color=COLOURS[kind], alpha=0.6)
        axes.plot(statistics.fmean(gains), place, "|", color=COLOURS[kind], markersize=12, markeredgewidth=2)
    for (start, budget), colour in COLOURS.items():
        axes.plot([], [], "|", color=colour, markeredgewidth=2, label=f"{start}, equal {budget}")
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel=GAIN_AXIS)
    axes.set_xscale("symlog", linthresh=1)
    axes.invert_yaxis()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(out: Path) -> None:
    """Print the table of a folder; write it and the picture there."""
    conditions, done = read(out)
    text = to_text(conditions, done)
    write_whole(out / TABLE, lambda path: path.write_text(text, encoding="utf-8"))
    plot(done, out / PICTURE)
    print(text, end="")
