"""The table and the picture of the pyramid evidence, from what experiments.pyramid_evidence left.

python -m experiments.pyramid_evidence_report RESULTS --wheels FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.pyramid_evidence import ARMS
from experiments.pyramid_evidence_data import TASKS, Task, load

METRICS = ("mIoU", "boundary F1", "PSNR")


def table(rows: list[dict[str, Any]]) -> str:
    """Return mean and range over the seeds, by task and arm."""
    lines = [f"{'task':<12}{'arm':<14}{'seeds':>6}{'decoder':>9}" + "".join(f"{m:>24}" for m in METRICS)]
    for task in TASKS:
        for arm in ARMS:
            runs = [row for row in rows if (row["task"], row["arm"]) == (task, arm)]
            if runs:
                cells = "".join(f"{spread([row[m] for row in runs if m in row]):>24}" for m in METRICS)
                lines.append(f"{task:<12}{arm:<14}{len(runs):>6}{runs[0]['parameters']:>9}{cells}")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return ``mean (lowest to highest)``, or a dash."""
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "-"


def as_picture(task: Task, values: Tensor) -> Tensor:
    """Return classes or pixels as an image [height, width, 3] in 0..1."""
    if task.is_segmentation:
        return (values.float() / (task.outputs - 1))[..., None].expand(-1, -1, 3)
    return values.float().permute(1, 2, 0)


def predicted(results: Path, task: str, arm: str) -> Path:
    """Return where the prediction for one held-out image of a task and arm is kept."""
    return results / f"{task}-{arm.replace(' ', '_')}.pt"


def draw(results: Path, wheels: Path, tasks: list[str]) -> None:
    """Write a row per task: input, truth, and every arm's prediction for one held-out image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = [arm for arm in ARMS if all(predicted(results, name, arm).exists() for name in tasks)]
    titles = ("input", "truth", *arms)
    figure, axes = pyplot.subplots(len(tasks), len(titles), figsize=(2 * len(titles), 2.2 * len(tasks)), squeeze=False)
    for row, name in zip(axes, tasks, strict=True):
        task = load(name, wheels)
        images, truth = task.test
        middle = len(images) // 2
        panels = [images[middle].permute(1, 2, 0), as_picture(task, truth[middle])]
        panels += [as_picture(task, torch.load(predicted(results, name, arm))) for arm in arms]
        for axis, panel, title in zip(row, panels, titles, strict=True):
            axis.imshow(panel.numpy())
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(results / "pictures.png", dpi=90)


def main() -> None:
    """Print the table, and write it and the picture beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--wheels", type=Path, required=True, help="where the packages with the data are kept")
    args = parser.parse_args()
    rows = [json.loads(line) for line in (args.results / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    text = table(rows)
    print(text)
    (args.results / "table.txt").write_text(text + "\n", encoding="utf-8")
    drawn = [name for name in TASKS if all(predicted(args.results, name, arm).exists() for arm in ARMS[:2])]
    if drawn:
        draw(args.results, args.wheels, drawn)


if __name__ == "__main__":
    main()
