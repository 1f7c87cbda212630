"""Table and plot of benchmarks/inference.py."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

REFERENCE = "patchify"
DRAWN_SIZE = "B"
DRAWN = ("ours", "ours, lean", "torchvision's conv stem")
PARAMETERS = {"Ti": 5.7e6, "S": 22.1e6, "B": 86.6e6, "L": 304.3e6}
"""Parameters of timm's patchify models."""

AXES: dict[str, tuple[str, Callable[[Any], float]]] = {
    "img_size": ("pixels", lambda size: size**2),
    "batch": ("batch", float),
    "size": ("parameters", lambda size: PARAMETERS[size]),
}
"""Varied column -> its name, and the amount for a value."""

COLUMNS = ("size", "engine", "dtype", "batch", "img_size")


def write(out: Path, results: dict[str, Any], plot: Path | None = None) -> None:
    """Write the results as JSON and as a Markdown table, and plot the forward passes of one size."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "inference.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "inference.md").write_text(to_markdown(results), encoding="utf-8")
    groups = [
        group for group in results["groups"].values() if group["kind"] == "forward" and group["size"] == DRAWN_SIZE
    ]
    draw(plot or out / "inference.png", groups)


def medians(group: dict[str, Any]) -> dict[str, float]:
    """Return the median seconds of each peer."""
    return {label: statistics.median(values) for label, values in group["seconds"].items()}


def ratios(group: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Return the ratio of each peer's time to the patchify model's in the same round: median and quartiles.

    Peers alternate, so the ratio cancels what slows down a whole round.
    """
    rounds = group["seconds"][REFERENCE]
    table = {}
    for label, times in group["seconds"].items():
        low, middle, high = statistics.quantiles(
            (a / b for a, b in zip(times, rounds, strict=True)), method="inclusive"
        )
        table[label] = middle, low, high
    return table


def to_markdown(results: dict[str, Any]) -> str:
    """Return one row per group: the patchify model's milliseconds, and the other models' ratios to it."""
    lines = [results["machine"], "", "Ratios: time / patchify's in the same round, median and [quartiles].", ""]
    kinds = {group["kind"] for group in results["groups"].values()}
    for kind in sorted(kinds):
        chosen = [group for group in results["groups"].values() if group["kind"] == kind]
        labels = list(dict.fromkeys(label for group in chosen for label in group["seconds"] if label != REFERENCE))
        lines += [f"## {kind}", "", "| " + " | ".join([*COLUMNS, "patchify, ms", "spread", *labels]) + " |"]
        lines.append("|" + "---|" * (len(COLUMNS) + 2 + len(labels)))
        lines += [row(group, labels) for group in chosen]
        lines += ["", *exponents(chosen, labels), *memory(chosen, labels)]
    return "\n".join(lines) + "\n"


def row(group: dict[str, Any], labels: list[str]) -> str:
    """Return one group as a table row; the spread is that of the patchify model's runs."""
    times, shares = group["seconds"][REFERENCE], ratios(group)
    middle = statistics.median(times)
    cells = [
        *(str(group[name]) for name in COLUMNS),
        f"{1e3 * middle:.1f}",
        f"{(max(times) - min(times)) / middle:.0%}",
    ]
    for label in labels:
        cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*shares[label]) if label in shares else "-")
    return "| " + " | ".join(cells) + " |"


def memory(groups: list[dict[str, Any]], labels: list[str]) -> list[str]:
    """Return a table of the peak memory of training: the patchify model's, and the other models' ratios to it."""
    measured = [group for group in groups if "peak_bytes" in group]
    if not measured:
        return []
    lines = [
        "| " + " | ".join(["size", "batch", "patchify, peak MB", *labels]) + " |",
        "|" + "---|" * (3 + len(labels)),
    ]
    for group in measured:
        peak = group["peak_bytes"]
        shares = [f"{peak[label] / peak[REFERENCE]:.2f}" if label in peak else "-" for label in labels]
        cells = [group["size"], str(group["batch"]), f"{peak[REFERENCE] / 1e6:.0f}", *shares]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def exponents(groups: list[dict[str, Any]], labels: list[str]) -> list[str]:
    """Return a table of how time grows with each column that has at least three values."""
    lines = []
    for axis, (name, amount) in AXES.items():
        for fixed, series in along(axis, groups).items():
            if len(series) < 3:
                continue
            points = [(amount(group[axis]), medians(group)) for group in series]
            cells = [
                f"{exponent({x: values[label] for x, values in points}):.2f}"
                if all(label in values for _, values in points)
                else "-"
                for label in (REFERENCE, *labels)
            ]
            of = ", ".join(f"{column} {value}" for column, value in fixed)
            lines.append("| " + " | ".join([name, of, *cells]) + " |")
    if not lines:
        return []
    head = ["time grows with the power of", "at", REFERENCE, *labels]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines, ""]


def along(axis: str, groups: list[dict[str, Any]]) -> dict[tuple[tuple[str, Any], ...], list[dict[str, Any]]]:
    """Return the groups that differ only in one column, by the other columns."""
    series = defaultdict(list)
    for group in groups:
        series[tuple((column, group[column]) for column in COLUMNS if column != axis)].append(group)
    return series


def exponent(points: dict[float, float]) -> float:
    """Return the least-squares slope of log(seconds) over log(size)."""
    x, y = [math.log(value) for value in points], [math.log(value) for value in points.values()]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def draw(path: Path, groups: list[dict[str, Any]]) -> None:
    """Draw the ratio of each peer in ``DRAWN`` to the patchify model's time, one panel per batch size."""
    if not groups:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    batches = sorted({group["batch"] for group in groups})
    widths = [sum(group["batch"] == batch for group in groups) for batch in batches]
    options: dict[str, Any] = {
        "layout": "constrained",
        "squeeze": False,
        "sharey": True,
        "gridspec_kw": {"width_ratios": widths},
    }
    figure, axes = plt.subplots(1, len(batches), figsize=(1.5 + 0.9 * sum(widths), 3.4), **options)
    for panel, batch in zip(axes[0], batches, strict=True):
        draw_panel(panel, [group for group in groups if group["batch"] == batch])
        panel.set_title(f"ViT-{DRAWN_SIZE}/16, batch {batch}", fontsize=9)
    axes[0][0].set_ylabel("time / timm's patchify ViT, same engine", fontsize=8)
    axes[0][-1].legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_panel(panel: Any, groups: list[dict[str, Any]]) -> None:
    """Draw the bars of each group, with their values."""
    width = 0.8 / len(DRAWN)
    for place, label in enumerate(DRAWN):
        found = [(i, ratios(group)[label][0]) for i, group in enumerate(groups) if label in group["seconds"]]
        heights = [share for _, share in found]
        positions = [i + (place - (len(DRAWN) - 1) / 2) * width for i, _ in found]
        bars = panel.bar(positions, heights, width, label=label)
        panel.bar_label(bars, fmt="%.2f", fontsize=6, rotation=90, padding=2)
    names = [f"{group['engine']}\n{group['dtype']}" for group in groups]
    panel.set_xticks(range(len(groups)), names, fontsize=7)
    panel.axhline(1, color="black", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(y=0.15)
