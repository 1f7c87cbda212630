"""Report, plot and results file of experiments/transplant_cifar10.py."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import torch

from experiments.machine import in_words
from experiments.seeds import spread
from experiments.transplant_cifar10_experiments import (
    BATCH,
    DRIFT_BATCHES,
    DRIFT_FORWARDS,
    DRIFT_NORMS,
    OPTIMISERS,
    STARTS,
    STEM,
    TRUNK,
    WINDOW,
    Run,
)

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = dict(zip(STARTS, ("#000000", "#0072B2", "#E69F00", "#CC79A7"), strict=True))
DRIFT_STYLES = dict(zip(DRIFT_NORMS, ("#0072B2", "#56B4E9", "#E69F00"), strict=True))

# Text


def per_cent(fractions: Sequence[float]) -> list[float]:
    """Return fractions in per cent."""
    return [100 * fraction for fraction in fractions]


def function_table(results: dict[str, Any]) -> list[str]:
    """Return the table of the unchanged function."""
    lines = [f"{'':<42}{'accuracy %':>16}{'changed predictions':>21}{'logit error':>13}"]
    for name, row in results["function"].items():
        lines.append(f"{name:<42}{100 * row['accuracy']:>16.2f}{row['changed']:>21}{row['logit_error']:>13.1e}")
    for name, values in results["control"].items():
        lines.append(f"{f're-initialised stem, {name} statistics':<42}{spread(per_cent(values)):>16}")
    return lines


def standard_error(results: dict[str, Any]) -> float:
    """Return the standard error of the source's accuracy due to the number of test images."""
    score = results["function"]["source, float32"]["accuracy"]
    return math.sqrt(score * (1 - score) / results["setting"]["test_images"])


def runs_of(results: dict[str, Any], optimiser: str, start: str) -> list[Run]:
    """Return the finished runs of one optimiser and start, by seed."""
    found = (run for run in results["runs"] if (run.optimiser, run.start) == (optimiser, start))
    return sorted(found, key=lambda run: run.seed)


def tuning_table(results: dict[str, Any], optimiser: str) -> list[str]:
    """Return the table of fine-tuning with one optimiser."""
    name, rate, decay = OPTIMISERS[optimiser]
    lines = [
        f"{optimiser} (timm's {name}, rate {rate:g}, weight decay {decay:g})",
        f"{'start':<30}{'runs':>5}{'accuracy %':>16}{'minus patchify':>17}{'first loss':>17}{'last loss':>17}",
    ]
    base = {run.seed: run.accuracy for run in runs_of(results, optimiser, next(iter(COLOURS)))}
    for start in COLOURS:
        runs = runs_of(results, optimiser, start)
        if not runs:
            continue
        scores = [run.accuracy for run in runs]
        gains = [run.accuracy - base[run.seed] for run in runs if run.seed in base]  # runs finish in any order
        losses = "".join(f"{spread(v, 3):>17}" for v in ([r.first for r in runs], [r.last for r in runs]))
        lines.append(f"{start:<30}{len(runs):>5}{spread(per_cent(scores)):>16}{spread(per_cent(gains)):>17}{losses}")
    return lines


def drift_table(results: dict[str, Any]) -> list[str]:
    """Return the table of BatchNorm drift."""
    counts = list(results["drift"][0]["errors"])
    lines = [f"{'':<28}{'batch':>6}" + "".join(f"{f'after {n}':>11}" for n in counts) + f"{'accuracy %':>12}"]
    for row in results["drift"]:
        errors = "".join(f"{row['errors'][n]:>11.1e}" for n in counts)
        lines.append(f"{row['norm']:<28}{row['batch']:>6}{errors}{100 * row['accuracy']:>12.2f}")
    return lines


def to_text(results: dict[str, Any]) -> str:
    """Return the report."""
    setting = results["setting"]
    lines = [
        "A trained classifier, transplanted: CIFAR-10",
        "",
        in_words(results["environment"]),
        f"{setting['train_images']} training and {setting['test_images']} test images; batch {BATCH}; float32; "
        f"source trained for {setting['epochs']} epochs; {results['seconds']:.0f} s so far in all",
        f"source: timm VisionTransformer {TRUNK}; stem {list(STEM.channels)}",
        results["report"],
        "",
        "1. The same function (changed predictions and relative logit error: against the source in float32)",
        *function_table(results),
        "",
        f"2. Fine-tuning for {setting['steps']} steps; mean +- sample standard deviation over seeds {setting['seeds']}",
        f"(losses: mean of the first and last {WINDOW} steps; minus patchify: paired by seed; one standard error of an "
        f"accuracy on these test images: {100 * standard_error(results):.2f} points)",
        *(line for name in OPTIMISERS for line in (*tuning_table(results, name), "")),
        "3. BatchNorm drift: relative error of the patch embedding after train-mode forwards without weight update, "
        "and accuracy at the end",
        *drift_table(results),
    ]
    return "\n".join(lines) + "\n"


# Plot


def plot_losses(axes: Any, results: dict[str, Any], optimiser: str) -> None:
    """Plot the running mean of each start's training loss: its mean and range over seeds."""
    width = max(results["setting"]["steps"] // 15, 1)
    for start, colour in COLOURS.items():
        curves = [run.losses for run in runs_of(results, optimiser, start)]
        if not curves:
            continue
        smooth = torch.tensor(curves).unfold(1, width, 1).mean(2)
        steps = torch.arange(smooth.shape[1]) + width
        axes.plot(steps, smooth.mean(0), color=colour, label=start, linewidth=1.8)
        axes.fill_between(steps, smooth.amin(0), smooth.amax(0), color=colour, alpha=0.15, linewidth=0)
    axes.set(title=f"Training loss, {optimiser} {OPTIMISERS[optimiser][1]:g}", xlabel="step")
    axes.set_ylabel(f"mean of {width} steps")


def plot_accuracies(axes: Any, results: dict[str, Any]) -> None:
    """Plot the test accuracy of every run as a dot, and of the source as a line."""
    ticks = []
    for group, optimiser in enumerate(OPTIMISERS):
        for index, (start, colour) in enumerate(COLOURS.items()):
            place = group * (len(COLOURS) + 1) + index
            values = [100 * run.accuracy for run in runs_of(results, optimiser, start)]
            axes.plot([place] * len(values), values, "o", color=colour, alpha=0.6, markeredgewidth=0)
            if values:
                axes.plot(place, statistics.fmean(values), "_", color=colour, markersize=22, markeredgewidth=2)
        ticks.append(group * (len(COLOURS) + 1) + (len(COLOURS) - 1) / 2)
    source = 100 * results["function"]["source, float32"]["accuracy"]
    axes.axhline(source, color="grey", linestyle=":", label="source before fine-tuning")
    axes.set_xticks(ticks, list(OPTIMISERS))
    axes.set_xlim(-1, len(OPTIMISERS) * (len(COLOURS) + 1) - 1)
    axes.legend(frameon=False, fontsize=8)
    axes.set(title="Test accuracy after fine-tuning (dot: run, bar: mean)", ylabel="%")


def plot_drift(axes: Any, results: dict[str, Any]) -> None:
    """Plot the error of the patch embedding over the number of train-mode forward passes."""
    for row in results["drift"]:
        line = "-" if row["batch"] == DRIFT_BATCHES[0] else "--"
        steps, errors = [int(count) for count in row["errors"]], list(row["errors"].values())
        label = f"{row['norm']}, batch {row['batch']}"
        axes.plot(steps, errors, line, marker=".", color=DRIFT_STYLES[row["norm"]], label=label)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log")
    axes.set_xticks([0, *DRIFT_FORWARDS], [str(count) for count in (0, *DRIFT_FORWARDS)])
    axes.set(title="BatchNorm drift", xlabel="train-mode forwards without weight update")
    axes.set_ylabel("relative error of the embedding")
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.08))


def plot(results: dict[str, Any], path: Path) -> None:
    """Write the picture."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for place, optimiser in zip(axes[0], OPTIMISERS, strict=True):
        plot_losses(place, results, optimiser)
    axes[0, 0].legend(frameon=False)
    plot_accuracies(axes[1, 0], results)
    plot_drift(axes[1, 1], results)
    for place in axes.flat:
        place.grid(alpha=0.25)
        place.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)


# Files


def to_json(results: dict[str, Any]) -> str:
    """Return the results as JSON with one line per run."""
    text = json.dumps({**results, "runs": []}, indent=2)
    lines = ",\n".join("    " + json.dumps(asdict(run)) for run in results["runs"])
    return text.replace('"runs": []', f'"runs": [\n{lines}\n  ]') + "\n"


def save(results: dict[str, Any], out: Path) -> None:
    """Write everything measured so far."""
    (out / "results.json").write_text(to_json(results), encoding="utf-8")
    (out / "results.txt").write_text(to_text(results), encoding="utf-8")
    plot(results, out / "finetune.png")


def load_results(path: Path) -> dict[str, Any]:
    """Return the results of an earlier call."""
    results = json.loads(path.read_text(encoding="utf-8"))
    results["runs"] = [Run(**{**row, "losses": tuple(row["losses"])}) for row in results["runs"]]
    return results
