"""How much the stem's maps at strides 2, 4 and 8 help a small decoder on a real, pretrained trunk.

    python -m tools.dinov2_vit_small DINOV2.safetensors
    python -m experiments.pyramid_evidence DINOV2.safetensors --out OUT --wheels FOLDER     # resumable

The trunk is DINOv2's ViT-S (as patch 16), transplanted onto our default stem. Every arm has a decoder of about the same
size, trained for the same number of steps, on

    trunk        the last block's map at stride 16, as in a patchify model
    four blocks  the maps of four blocks at stride 16, as DPT takes from a patchify model
    stem         the last block, and the transplanted stem's maps at strides 2, 4 and 8
    random stem  the last block, and the maps of the same stem with random weights: would any filters do?
    pixels       the last block, and the pixels as maps of strides 2, 4 and 8: would any detail do?

First the encoder is frozen and its maps are computed once. Then some arms are fine-tuned briefly: the trained decoder
and the whole encoder. Each run is one line of OUT/runs.jsonl: task, arm, seed and the figures on held-out images. OUT
gets ``table.txt`` and ``pictures.png``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import convstem
from experiments.pyramid_evidence_arms import ARMS, Encoder, decoder_for, parameters
from experiments.pyramid_evidence_data import TASKS, Task, figures, load
from experiments.runs import RUNS, Row, append_line, read_lines
from tools import dinov2_vit_small

SEEDS = 3
FROZEN = {"steps": 400, "batch": 8, "side": 64}
TUNED = {"steps": 40, "batch": 4, "side": 128}
DECODER_RATE, TUNED_RATE = 3e-3, 5e-5
TUNED_ARMS, TUNED_TASKS = ("trunk", "stem", "pixels"), ("nuclei", "brain")

Maps = list[Tensor | None]


def plain_backbone(weights: Path) -> nn.Module:
    """Return DINOv2's ViT-S, for images of any size."""
    plain = dinov2_vit_small.load_patch16(weights)
    model = timm.create_model("vit_small_patch14_dinov2", patch_size=16, img_size=256, dynamic_img_size=True)
    model.load_state_dict(plain.state_dict())
    return model.eval()


def backbone(weights: Path) -> nn.Module:
    """Return the transplanted DINOv2 ViT-S, for images of any size."""
    return convstem.transplant(plain_backbone(weights))


@torch.no_grad()
def maps_of(encoder: nn.Module, images: Tensor) -> Maps:
    """Return the maps of all images, in half precision to fit into memory."""
    parts = [encoder.eval()(part) for part in images.split(8)]
    return [None if level[0] is None else torch.cat(level).half() for level in zip(*parts, strict=True)]


def windows(tensors: Maps, batch: int, side: int, generator: torch.Generator) -> Maps:
    """Return one random window of random images, in all their maps and in the truth, the last tensor."""
    truth = tensors[-1]
    index = torch.randint(len(truth), (batch,), generator=generator)
    corner = [16 * int(torch.randint((size - side) // 16 + 1, (1,), generator=generator)) for size in truth.shape[-2:]]

    def cut(tensor: Tensor) -> Tensor:
        stride = truth.shape[-1] // tensor.shape[-1]
        row, column = (start // stride for start in corner)
        part = tensor[index][..., row : row + side // stride, column : column + side // stride]
        return part.float() if part.is_floating_point() else part

    return [None if tensor is None else cut(tensor) for tensor in tensors]


def train(
    task: Task,
    tensors: Maps,
    predict: Callable[[Maps], Tensor],
    groups: list[dict[str, Any]],
    seed: int,
    steps: int,
    batch: int,
    side: int,
    watch: Callable[[int], None] = lambda _: None,
) -> None:
    """Train the groups' parameters on windows of the tensors and the task's truth; call ``watch`` after each step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=steps)
    for step in range(1, steps + 1):
        *given, truth = windows([*tensors, task.train[1]], batch, side, generator)
        optimizer.zero_grad()
        task.loss(predict(given), truth).backward()
        optimizer.step()
        schedule.step()
        watch(step)


def run_frozen(
    task: Task, maps: Maps, held_out: Maps, seed: int, make: Callable[[Maps, int], nn.Module] = decoder_for
) -> tuple[nn.Module, Tensor]:
    """Train a decoder on cached maps; return it, and its output for the held-out images."""
    torch.manual_seed(seed)
    decoder = make(maps, task.outputs)
    train(task, maps, decoder, [{"params": decoder.parameters(), "lr": DECODER_RATE}], seed, **FROZEN)
    return decoder, evaluate(lambda *parts: decoder(list(parts)), held_out)


def run_tuned(task: Task, encoder: nn.Module, decoder: nn.Module, seed: int) -> Tensor:
    """Fine-tune an encoder and its decoder briefly; return the output for the held-out images."""
    groups = [
        {"params": encoder.parameters(), "lr": TUNED_RATE},
        {"params": decoder.parameters(), "lr": DECODER_RATE / 10},
    ]
    train(task, [task.train[0]], lambda given: decoder(encoder(given[0])), groups, seed, **TUNED)
    return evaluate(lambda images: decoder(encoder(images)), [task.test[0]])


@torch.no_grad()
def evaluate(predict: Callable[..., Tensor], tensors: Maps) -> Tensor:
    """Return the outputs for all images, in batches."""
    count = len(tensors[0])
    parts = [[None if t is None else t[i : i + 8].float() for t in tensors] for i in range(0, count, 8)]
    return torch.cat([predict(*part) for part in parts])


class Results:
    """The runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done = {tuple(row[key] for key in ("task", "arm", "tuned", "seed")) for row in read_lines(folder / RUNS)}

    def todo(self, name: str, arm: str, tuned: bool, seeds: int) -> list[int]:
        """Return the seeds of the missing runs."""
        return [seed for seed in range(seeds) if (name, arm, tuned, seed) not in self.done]

    def decoder(self, name: str, arm: str, seed: int) -> Path:
        """Return the path of a frozen run's decoder."""
        return self.folder / f"{name}-{arm}-{seed}.decoder.pt"

    def add(self, row: dict[str, Any], task: Task, output: Tensor) -> None:
        """Save a run's figures, and the first seed's prediction for one held-out image if the encoder is frozen."""
        prediction = task.prediction(output)
        row |= figures(task, prediction, task.test[1])
        append_line(self.folder / RUNS, row)
        print(row, time.strftime("%H:%M:%S"), flush=True)
        if row["seed"] == 0 and not row["tuned"]:
            torch.save(prediction[task.shown].half(), self.folder / f"{row['task']}-{row['arm']}.prediction.pt")


def frozen_runs(task: Task, model: nn.Module, results: Results, seeds: int) -> None:
    """Do the missing runs of a task with the encoder frozen."""
    for arm in ARMS:
        todo = results.todo(task.name, arm, False, seeds)
        if not todo:
            continue
        encoder = Encoder(model, arm)
        maps, held_out = (maps_of(encoder, images) for images in (task.train[0], task.test[0]))
        for seed in todo:
            decoder, output = run_frozen(task, maps, held_out, seed)
            torch.save(decoder, results.decoder(task.name, arm, seed))
            row = {"task": task.name, "arm": arm, "tuned": False, "seed": seed, "parameters": parameters(decoder)}
            results.add(row, task, output)


def tuned_runs(task: Task, model: nn.Module, results: Results, seeds: int) -> None:
    """Do the missing runs of a task that fine-tune the encoder."""
    for arm in TUNED_ARMS:
        for seed in results.todo(task.name, arm, True, seeds):
            decoder = torch.load(results.decoder(task.name, arm, seed), weights_only=False)
            output = run_tuned(task, Encoder(copy.deepcopy(model), arm), decoder, seed)
            row = {"task": task.name, "arm": arm, "tuned": True, "seed": seed, "parameters": parameters(decoder)}
            results.add(row, task, output)


# Table and picture

METRICS = ("mIoU", "boundary F1", "PSNR")
WIDTHS = (11, 9, 13, 7, 9, 22, 22, 22)
"""Widths of the table's columns in characters."""


def table(rows: list[Row]) -> str:
    """Return a table of mean and range over the seeds, by task, encoder and arm."""
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


def draw(out: Path, tasks: list[Task]) -> None:
    """Draw one row per task: input, truth, and each frozen arm's prediction for one held-out image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = ("input", "truth", *ARMS)
    figure, axes = pyplot.subplots(len(tasks), len(titles), figsize=(2 * len(titles), 2.2 * len(tasks)), squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        images, truth = (part[task.shown] for part in task.test)
        predicted = [torch.load(out / f"{task.name}-{arm}.prediction.pt") for arm in ARMS]
        panels = [images.permute(1, 2, 0), *(as_picture(task, values) for values in (truth, *predicted))]
        for axis, panel, title in zip(row, panels, titles, strict=True):
            axis.imshow(panel.numpy())
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(out / "pictures.png", dpi=75)


def report(out: Path, tasks: list[Task]) -> None:
    """Print the table; write it and the picture beside the runs."""
    noisy = tasks[-1]
    text = f"{dinov2_vit_small.ORIGIN}\n\n{table(read_lines(out / RUNS))}"
    text += f"\n\nheld-out images per task: {', '.join(f'{t.name} {len(t.test[0])}' for t in tasks)}"
    text += f"; PSNR of the noisy images themselves: {figures(noisy, noisy.test[0], noisy.test[1])['PSNR']:.1f}"
    print(text)
    (out / "table.txt").write_text(text + "\n", encoding="utf-8")
    draw(out, tasks)


# Command line


def main() -> None:
    """Do the missing runs, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="written by tools.dinov2_vit_small")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, required=True, help="folder of the packages with the data")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    for folder in (args.out, args.wheels):
        folder.mkdir(parents=True, exist_ok=True)
    model, results = backbone(args.weights), Results(args.out)
    tasks = {name: load(name, args.wheels) for name in TASKS}
    for task in tasks.values():
        frozen_runs(task, model, results, args.seeds)
    for name in TUNED_TASKS:
        tuned_runs(tasks[name], model, results, args.seeds)
    report(args.out, list(tasks.values()))


if __name__ == "__main__":
    main()
