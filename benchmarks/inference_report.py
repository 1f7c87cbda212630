"""Table and plot of benchmarks/inference.py."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

REFERENCE = "patchify"
COLUMNS = ("size", "engine", "dtype", "batch", "img_size")


def write(out: Path, results: dict[str, Any]) -> None:
    """Write the results as JSON, as a table in Markdown, and as a plot."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "inference.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "inference.md").write_text(to_markdown(results), encoding="utf-8")
    draw(out / "inference.png", [group for group in results["groups"].values() if group["kind"] == "forward"])


def medians(group: dict[str, Any]) -> dict[str, float]:
    """Return the median seconds of each peer."""
    return {label: statistics.median(values) for label, values in group["seconds"].items()}


def to_markdown(results: dict[str, Any]) -> str:
    """Return every group as a row: the patchify model's milliseconds, and the others' share of them."""
    lines = [results["machine"], ""]
    kinds = {group["kind"] for group in results["groups"].values()}
    for kind in sorted(kinds):
        chosen = [group for group in results["groups"].values() if group["kind"] == kind]
        labels = list(dict.fromkeys(label for group in chosen for label in group["seconds"] if label != REFERENCE))
        lines += [f"## {kind}", "", "| " + " | ".join([*COLUMNS, "patchify, ms", "spread", *labels]) + " |"]
        lines.append("|" + "---|" * (len(COLUMNS) + 2 + len(labels)))
        lines += [row(group, labels) for group in chosen]
        lines += ["", *exponents(chosen)]
    return "\n".join(lines) + "\n"


def row(group: dict[str, Any], labels: list[str]) -> str:
    """Return one group as a row of the table; the spread is that of the patchify model's runs."""
    middle, times = medians(group), group["seconds"][REFERENCE]
    spread = f"{(max(times) - min(times)) / middle[REFERENCE]:.0%}"
    ratios = [f"{middle[label] / middle[REFERENCE]:.2f}" if label in middle else "-" for label in labels]
    cells = [*(str(group[name]) for name in COLUMNS), f"{1e3 * middle[REFERENCE]:.1f}", spread, *ratios]
    return "| " + " | ".join(cells) + " |"


def exponents(groups: list[dict[str, Any]]) -> list[str]:
    """Return how time grows with the pixels of an image, where one model was run on at least three sizes."""
    series: dict[tuple[str, ...], dict[int, dict[str, float]]] = defaultdict(dict)
    for group in groups:
        series[(group["size"], group["engine"], group["dtype"], str(group["batch"]))][group["img_size"]] = medians(
            group
        )
    lines = []
    for key, sizes in series.items():
        if len(sizes) < 3:
            continue
        for label in next(iter(sizes.values())):
            slope = exponent({size**2: values[label] for size, values in sizes.items()})
            lines.append(f"{' '.join(key)}, {label}: time grows as pixels to the power {slope:.2f}")
    return [*lines, ""] if lines else []


def exponent(points: dict[int, float]) -> float:
    """Return the least-squares slope of log(seconds) over log(size)."""
    x, y = [math.log(value) for value in points], [math.log(value) for value in points.values()]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def draw(path: Path, groups: list[dict[str, Any]]) -> None:
    """Draw every peer's time as a share of the patchify model's, a panel for each batch."""
    if not groups:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    batches = sorted({group["batch"] for group in groups})
    figure, axes = plt.subplots(1, len(batches), figsize=(5 * len(batches), 3.6), layout="constrained", squeeze=False)
    for panel, batch in zip(axes[0], batches, strict=True):
        chosen = [group for group in groups if group["batch"] == batch]
        labels = list(dict.fromkeys(label for group in chosen for label in group["seconds"]))
        width = 0.8 / len(labels)
        for place, label in enumerate(labels):
            heights = [medians(group).get(label, 0) / medians(group)[REFERENCE] for group in chosen]
            positions = [index + (place - (len(labels) - 1) / 2) * width for index in range(len(chosen))]
            panel.bar(positions, heights, width, label=label)
        names = [f"{group['size']}/16\n{group['engine']}\n{group['dtype']}" for group in chosen]
        panel.set_xticks(range(len(chosen)), names, fontsize=7)
        panel.axhline(1, color="black", linewidth=0.6)
        panel.set_title(f"batch {batch}", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("time / patchify's")
    axes[0][-1].legend(frameon=False, fontsize=7, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)
