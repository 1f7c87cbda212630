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

from experiments.pyramid_evidence_arms import ARMS
from experiments.pyramid_evidence_data import TASKS, Task, figures, load

METRICS = ("mIoU", "boundary F1", "PSNR")
WIDTHS = (11, 9, 13, 7, 9, 22, 22, 22)
"""Of the table's columns, in characters."""


def table(rows: list[dict[str, Any]]) -> str:
    """Return mean and range over the seeds, by task, encoder and arm."""
    head = ("task", "encoder", "arm", "seeds", "decoder", *METRICS)
    lines = [line(head)]
    keys = [(task, tuned, arm) for task in TASKS for tuned in (False, True) for arm in ARMS]
    for task, tuned, arm in keys:
        runs = [row for row in rows if (row["task"], row["tuned"], row["arm"]) == (task, tuned, arm)]
        if runs:
            metrics = [spread([row[metric] for row in runs if metric in row]) for metric in METRICS]
            cells = (task, "tuned" if tuned else "frozen", arm, str(len(runs)), str(runs[0]["parameters"]), *metrics)
            lines.append(line(cells))
    return "\n".join(lines)


def line(cells: tuple[str, ...]) -> str:
    """Return a line of the table."""
    return "".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def spread(values: list[float]) -> str:
    """Return ``mean (lowest to highest)``, or a dash."""
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "-"


def as_picture(task: Task, values: Tensor) -> Tensor:
    """Return classes or pixels as an image [height, width, 3] in 0..1."""
    if task.is_segmentation:
        return (values.float() / (task.outputs - 1))[..., None].expand(-1, -1, 3)
    return values.float().permute(1, 2, 0)


def draw(results: Path, tasks: list[Task]) -> None:
    """Write a row per task: input, truth, and every arm's prediction for one held-out image, the encoder frozen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = ("input", "truth", *ARMS)
    figure, axes = pyplot.subplots(len(tasks), len(titles), figsize=(2 * len(titles), 2.2 * len(tasks)), squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        images, truth = (part[task.shown] for part in task.test)
        predicted = [torch.load(results / f"{task.name}-{arm}.prediction.pt") for arm in ARMS]
        panels = [images.permute(1, 2, 0), *(as_picture(task, values) for values in (truth, *predicted))]
        for axis, panel, title in zip(row, panels, titles, strict=True):
            axis.imshow(panel.numpy())
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(results / "pictures.png", dpi=75)


def main() -> None:
    """Print the table, and write it and the picture beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--wheels", type=Path, required=True, help="where the packages with the data are kept")
    args = parser.parse_args()
    rows = [json.loads(line) for line in (args.results / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    tasks = [load(name, args.wheels) for name in TASKS]
    noisy = tasks[-1]
    text = table(rows) + f"\n\nheld-out images per task: {', '.join(f'{t.name} {len(t.test[0])}' for t in tasks)}"
    text += f"; PSNR of the noisy images themselves: {figures(noisy, noisy.test[0], noisy.test[1])['PSNR']:.1f}"
    print(text)
    (args.results / "table.txt").write_text(text + "\n", encoding="utf-8")
    draw(args.results, tasks)


if __name__ == "__main__":
    main()
