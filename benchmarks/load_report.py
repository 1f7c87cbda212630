"""Text and plot of benchmarks/load.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write(out: Path, results: dict[str, Any]) -> None:
    """Write the results as JSON, text and plot."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "load.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = [results["machine"], f"median of {results['repeats']} alternating loads, {results['cache']} file cache", ""]
    heads = f"{'load, ms':>10}{'min':>8}{'max':>8}{'+ image':>10}{'min':>8}{'max':>8}{'peak / file':>13}{'+ image':>9}"
    lines.append(f"{'':4}{'':26}{heads}")
    for size, result in results["sizes"].items():
        lines += [f"{size:4}{line}" for line in (*rows(result), *ratios(result))]
        lines.append("")
    (out / "load.txt").write_text("\n".join(lines), encoding="utf-8")
    draw(out / "load.png", results)


def rows(result: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each way to load: times, and the ratio of peak memory to the file size."""
    for label in result["medians"]:
        cells = f"{label:26}"
        for part in (result, result["with_first_image"]):
            times = part["seconds"][label]
            values = zip((part["medians"][label], min(times), max(times)), (10, 8, 8), strict=True)
            cells += "".join(f"{1e3 * value:{width}.1f}" for value, width in values)
        if memory := result.get("peak_bytes", {}).get(label):
            cells += f"{memory['loaded'] / result['file_bytes']:13.2f}{memory['used'] / result['file_bytes']:9.2f}"
        yield cells


def ratios(result: dict[str, Any]) -> Iterator[str]:
    """Yield the speed-up of each pair, and a load's share of the bus's rate."""
    used = result["with_first_image"]["speedup"]
    for pair, ratio in result["speedup"].items():
        yield f"speed-up {pair}: {ratio:.2f}; with the first image {used[pair]:.2f}"
    if "bandwidth" in result:
        share = result["bandwidth"] / result["pinned_bandwidth"]
        yield f"bytes per second: {result['bandwidth']:.2e}, {share:.0%} of pinned copies"


def draw(path: Path, results: dict[str, Any]) -> None:
    """Draw the medians as bars on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    medians = {size: result["medians"] for size, result in results["sizes"].items()}
    labels = list(dict.fromkeys(label for values in medians.values() for label in values))
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.8 / len(labels)
    for place, label in enumerate(labels):
        found = [(i, values[label]) for i, values in enumerate(medians.values()) if label in values]
        positions = [i + (place - (len(labels) - 1) / 2) * width for i, _ in found]
        bars = axes.bar(positions, [1e3 * value for _, value in found], width, label=label, log=True)
        axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
    axes.set_xticks(range(len(medians)), [f"ViT-{size}/16" for size in medians])
    axes.set_ylabel("milliseconds to a loaded model, log scale")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
