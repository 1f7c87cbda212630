"""A trained classifier, transplanted, keeps its accuracy and fine-tunes as well as the original.

A small patchify ViT is trained on CIFAR-10, and its patch embedding transplanted to a conv stem. Then:

1. Same function: predictions of both on all test images, in float32 and under bfloat16 autocast. Controls: the same
   model with a re-initialised stem, with fresh and with re-estimated BatchNorm statistics.
2. Fine-tuning on CIFAR-10 for the same steps: the patchify model continuing, the transplant, the transplant with
   frozen BatchNorm, and a re-initialised stem. Every start sees the same batches under the same seed.
3. BatchNorm drift: how far train-mode forwards, without any weight update, move the transplant from its source.

    python recipes/cifar10.py DATA
    OMP_NUM_THREADS=2 python recipes/transplant_cifar10.py --data-dir DATA --out OUT

OUT gets ``results.json``, ``results.txt`` and ``finetune.png``, rewritten after each run, the source model and the
images as tensors; ``--resume`` goes on from what is there. There is one source model, trained with one seed;
``--seeds`` are those of fine-tuning batches and re-initialised stems.

The exit code is 1 if the transplant changes more than one prediction or a control is not near chance.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import timm
import torch
from cifar10 import CLASSES, SIZE
from PIL import Image
from timm.optim import create_optimizer_v2
from torch import Tensor, multiprocessing, nn
from torch.nn import functional
from tqdm import tqdm

from convstem import StemSpec, freeze_stem, transplant
from convstem.transplant_model import swap_stem

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

TRUNK = {"img_size": SIZE, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2, "num_classes": len(CLASSES)}

STEM = StemSpec((64, 128))
"""Two stride-2 layers, wide enough to carry every pixel with both signs."""

BATCH = 128
CALIBRATION_BATCHES = 8
CLIP = 1.0
"""Largest norm of a gradient."""

SOURCE_RATE = 2e-3
"""Peak AdamW rate of the source model."""

OPTIMISERS = {"AdamW": ("adamw", 1e-3, 0.05), "SGD": ("momentum", 0.02, 0.0)}
"""timm name, peak rate and weight decay of fine-tuning: one rate for every start, not tuned. SGD has momentum 0.9."""

WINDOW = 50
"""Steps over which the first and the last training loss are averaged."""

CHANCE = 0.2
"""Accuracy below which a control counts as near chance (0.1)."""

DRIFT_FORWARDS = (1, 10, 100)
DRIFT_BATCHES = (128, 8)
DRIFT_NORMS = {"BatchNorm, momentum 0.1": 0.1, "BatchNorm, momentum 0.01": 0.01, "frozen BatchNorm": None}
DRIFT_IMAGES = 1000
"""Test images on which the error of the patch embedding is measured."""

COLOURS = {
    "patchify, continuing": "#000000",
    "transplant": "#0072B2",
    "transplant, frozen BatchNorm": "#E69F00",
    "re-initialised conv stem": "#CC79A7",
}
"""The starts of fine-tuning in the order of the tables, and their colours."""

DRIFT_STYLES = dict(zip(DRIFT_NORMS, ("#0072B2", "#56B4E9", "#E69F00"), strict=True))


@dataclass(frozen=True)
class Split:
    """Images as bytes [count, 3, 32, 32] and their labels [count]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Job:
    """One fine-tuning run to be done."""

    optimiser: str
    start: str
    seed: int


@dataclass(frozen=True)
class Run(Job):
    """One fine-tuning run that was done; the accuracy is a fraction of the test images."""

    accuracy: float
    first: float
    """Mean training loss of the first steps."""
    last: float
    """Mean training loss of the last steps."""
    losses: tuple[float, ...]


# Data


def load_split(folder: Path, cache: Path, limit: int) -> Split:
    """Return one split of the image folder, from the cache where that exists.

    Args:
        folder: holds one folder of PNG files for each class.
        cache: file of tensors to read or write.
        limit: number of images, the same for each class; 0: all, in which case the cache is used.
    """
    if cache.exists() and not limit:
        return Split(**torch.load(cache, weights_only=True))
    files = [sorted((folder / name).glob("*.png"))[: limit // len(CLASSES) or None] for name in CLASSES]
    labels = [label for label, paths in enumerate(files) for _ in paths]
    paths = [path for paths in files for path in paths]
    images = [torch.from_numpy(read_png(path)) for path in tqdm(paths, desc=f"read {folder.name}", leave=False)]
    split = Split(torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))
    if not limit:
        torch.save(asdict(split), cache)
    return split


def read_png(path: Path) -> numpy.ndarray:
    """Return the pixels of an image, [height, width, 3]."""
    with Image.open(path) as image:
        return numpy.array(image.convert("RGB"))


def normalise(images: Tensor) -> Tensor:
    """Return bytes [batch, 3, height, width] as normalised floats."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images / 255 - mean) / std


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return random crops, from images [batch, 3, 32, 32] padded with 4 black pixels, half of them mirrored."""
    count, pad = len(images), 4
    top, left = torch.randint(2 * pad + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows, columns = top + torch.arange(SIZE), left + torch.arange(SIZE)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = functional.pad(images, [pad] * 4)
    return padded[torch.arange(count).view(-1, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def batches(data: Split, seed: int, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented, normalised images and their labels without end, each epoch in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(data.labels), generator=generator).split(size):
            yield normalise(augment(data.images[rows], generator)), data.labels[rows]


# Models, training, evaluation


def create_source() -> nn.Module:
    """Return the patchify ViT, untrained."""
    torch.manual_seed(0)
    overlay = {"mean": MEAN, "std": STD}
    return timm.create_model("vit_tiny_patch16_224", pretrained_cfg_overlay=overlay, **TRUNK)


def reinitialised(source: nn.Module, seed: int) -> nn.Module:
    """Return the source with a conv stem drawn at random."""
    torch.manual_seed(seed)
    model = copy.deepcopy(source)
    swap_stem(model, STEM, transplanted=False)
    return model


def train(
    model: nn.Module, data: Split, seed: int, steps: int, optimiser: tuple[str, float, float], show: bool = False
) -> list[float]:
    """Train a model in place, with warm-up over a twentieth of the steps and a cosine to zero; return its losses.

    Args:
        seed: of the order of the images and their augmentation.
        optimiser: timm name, peak rate and weight decay.
        show: a progress bar.
    """
    name, rate, decay = optimiser
    update = create_optimizer_v2(model, name, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        update, lambda step: min(20 * (step + 1) / steps, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    losses = []
    progress = tqdm(total=steps, desc="source model", mininterval=5, disable=not show)
    model.train()
    for images, labels in islice(batches(data, seed), steps):
        loss = functional.cross_entropy(model(images), labels)
        update.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        update.step()
        schedule.step()
        losses.append(loss.item())
        progress.update()
    model.eval()
    return losses


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, bf16: bool = False) -> Tensor:
    """Return a model's logits [count, classes] in eval mode, under bfloat16 autocast if asked for."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return torch.cat([model(normalise(part)).float() for part in images.split(250)])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of correct predictions."""
    return (logits.argmax(1) == labels).double().mean().item()


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the root-mean-square difference over the root mean square of what is expected."""
    return ((found - expected).double().norm() / expected.double().norm()).item()


# The three experiments


def compare(source: nn.Module, twin: nn.Module, test: Split) -> dict[str, dict[str, float]]:
    """Return accuracies of source and transplant in both precisions, and how far each is from the source in float32."""
    expected = predict(source, test.images)
    found = {
        f"{name}, {precision}": predict(model, test.images, precision == "bf16 autocast")
        for precision in ("float32", "bf16 autocast")
        for name, model in (("source", source), ("transplant", twin))
    }
    return {
        name: {
            "accuracy": accuracy(logits, test.labels),
            "changed": int((logits.argmax(1) != expected.argmax(1)).sum()),
            "logit_error": relative(logits, expected),
        }
        for name, logits in found.items()
    }


def control(source: nn.Module, data: Split, test: Split, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Return the accuracies of the source with re-initialised stems, by the statistics of their BatchNorm."""
    found: dict[str, list[float]] = {"fresh": [], "re-estimated": []}
    for seed in seeds:
        model = reinitialised(source, seed)
        found["fresh"].append(accuracy(predict(model, test.images), test.labels))
        set_momentum(model, None)  # a plain average over the batches
        forward_stem(model, data, seed, range(CALIBRATION_BATCHES), BATCH)
        found["re-estimated"].append(accuracy(predict(model, test.images), test.labels))
    return found


def set_momentum(model: nn.Module, momentum: float | None) -> None:
    """Set the momentum of every BatchNorm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


@torch.no_grad()
def forward_stem(model: nn.Module, data: Split, seed: int, steps: Sequence[int], size: int) -> None:
    """Run a model's stem in train mode, without weight updates, on as many batches as there are steps."""
    model.patch_embed.train()
    for images, _ in islice(batches(data, seed, size), steps[0], steps[-1] + 1):
        model.patch_embed(images)
    model.patch_embed.eval()


@torch.no_grad()
def drift(source: nn.Module, twin: nn.Module, data: Split, test: Split) -> list[dict[str, Any]]:
    """Return the patch embedding's relative error, and the accuracy, after train-mode forwards of the stem."""
    images = normalise(test.images[:: max(len(test.images) // DRIFT_IMAGES, 1)])
    expected, rows = source.patch_embed(images), []
    for size in DRIFT_BATCHES:
        for name, momentum in DRIFT_NORMS.items():
            model = copy.deepcopy(twin)
            freeze_stem(model, bn_only=True) if momentum is None else set_momentum(model, momentum)
            errors, done = {"0": relative(model.patch_embed(images), expected)}, 0
            for count in DRIFT_FORWARDS:
                forward_stem(model, data, 0, range(done, count), size)
                errors[str(count)], done = relative(model.patch_embed(images), expected), count
            score = accuracy(predict(model, test.images), test.labels)
            rows.append({"norm": name, "batch": size, "errors": errors, "accuracy": score})
    return rows


def start_model(start: str, source: nn.Module, twin: nn.Module, seed: int) -> nn.Module:
    """Return a fresh copy of the model that a fine-tuning run starts from."""
    if start == "re-initialised conv stem":
        return reinitialised(source, seed)
    model = copy.deepcopy(source if start == "patchify, continuing" else twin)
    return freeze_stem(model, bn_only=True) if start == "transplant, frozen BatchNorm" else model


def fine_tune(job: Job, models: tuple[nn.Module, nn.Module], data: Split, test: Split, steps: int) -> Run:
    """Fine-tune one model and return what was measured.

    Args:
        models: source and transplant, which stay as they are.
    """
    model = start_model(job.start, *models, job.seed)
    losses = train(model, data, 1000 + job.seed, steps, OPTIMISERS[job.optimiser])  # other batches than the source's
    score = accuracy(predict(model, test.images), test.labels)
    first, last = statistics.fmean(losses[:WINDOW]), statistics.fmean(losses[-WINDOW:])
    return Run(job.optimiser, job.start, job.seed, score, first, last, tuple(round(loss, 4) for loss in losses))


# Output


def environment(jobs: int) -> dict[str, Any]:
    """Return machine and versions.

    Args:
        jobs: processes that share the threads.
    """
    packages = ("convstem", "torch", "timm", "torchvision")
    return {
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {jobs} jobs",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def cpu_name() -> str:
    """Return the processor's name where the system tells it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {names[0]}" if names else platform.machine()


def spread(values: Sequence[float], scale: float = 1, digits: int = 2) -> str:
    """Return mean and sample standard deviation as text."""
    if not values:
        return ""
    text = f"{scale * statistics.fmean(values):.{digits}f}"
    return f"{text} +- {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def function_table(results: dict[str, Any]) -> list[str]:
    """Return the lines about the unchanged function."""
    lines = [f"{'':<42}{'accuracy %':>16}{'changed predictions':>21}{'logit error':>13}"]
    for name, row in results["function"].items():
        lines.append(f"{name:<42}{100 * row['accuracy']:>16.2f}{row['changed']:>21}{row['logit_error']:>13.1e}")
    for name, values in results["control"].items():
        lines.append(f"{f're-initialised stem, {name} statistics':<42}{spread(values, 100):>16}")
    return lines


def standard_error(results: dict[str, Any]) -> float:
    """Return the standard error of the source's accuracy that comes from the number of test images."""
    score = results["function"]["source, float32"]["accuracy"]
    return math.sqrt(score * (1 - score) / results["setting"]["test_images"])


def runs_of(results: dict[str, Any], optimiser: str, start: str) -> list[Run]:
    """Return the finished runs of one optimiser and start, by seed."""
    found = (run for run in results["runs"] if (run.optimiser, run.start) == (optimiser, start))
    return sorted(found, key=lambda run: run.seed)


def tuning_table(results: dict[str, Any], optimiser: str) -> list[str]:
    """Return the lines about fine-tuning with one optimiser."""
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
        losses = "".join(f"{spread(v, digits=3):>17}" for v in ([r.first for r in runs], [r.last for r in runs]))
        lines.append(f"{start:<30}{len(runs):>5}{spread(scores, 100):>16}{spread(gains, 100):>17}{losses}")
    return lines


def drift_table(results: dict[str, Any]) -> list[str]:
    """Return the lines about BatchNorm drift."""
    counts = list(results["drift"][0]["errors"])
    lines = [f"{'':<28}{'batch':>6}" + "".join(f"{f'after {n}':>11}" for n in counts) + f"{'accuracy %':>12}"]
    for row in results["drift"]:
        errors = "".join(f"{row['errors'][n]:>11.1e}" for n in counts)
        lines.append(f"{row['norm']:<28}{row['batch']:>6}{errors}{100 * row['accuracy']:>12.2f}")
    return lines


def to_text(results: dict[str, Any]) -> str:
    """Return the report."""
    info, setting = results["environment"], results["setting"]
    lines = [
        "A trained classifier, transplanted: CIFAR-10",
        "",
        f"{info['machine']}; " + ", ".join(f"{name} {number}" for name, number in info["versions"].items()),
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


def to_json(results: dict[str, Any]) -> str:
    """Return the results as JSON with one line per run."""
    text = json.dumps({**results, "runs": []}, indent=2)
    lines = ",\n".join("    " + json.dumps(asdict(run)) for run in results["runs"])
    return text.replace('"runs": []', f'"runs": [\n{lines}\n  ]') + "\n"


def plot_losses(axes: Any, results: dict[str, Any], optimiser: str) -> None:
    """Plot the training losses of each start: mean and range over seeds of a running mean."""
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
    """Plot the error of the patch embedding against the number of train-mode forwards."""
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


def save(results: dict[str, Any], out: Path) -> None:
    """Write everything measured so far."""
    (out / "results.json").write_text(to_json(results), encoding="utf-8")
    (out / "results.txt").write_text(to_text(results), encoding="utf-8")
    plot(results, out / "finetune.png")


# Command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="image folder written by recipes/cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="destination directory")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of fine-tuning")
    parser.add_argument("--steps", type=int, default=150, help="steps of fine-tuning")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the source model")
    parser.add_argument("--jobs", type=int, default=2, help="fine-tuning runs at a time, which share the threads")
    parser.add_argument("--resume", action="store_true", help="go on from what an earlier call left in OUT")
    parser.add_argument("--subset", type=int, default=0, help="images of each split, for a smoke test; 0: all")
    return parser.parse_args(argv)


def settings(args: argparse.Namespace, data: Split, test: Split) -> dict[str, Any]:
    """Return everything that the results depend on, JSON-plain."""
    return {
        "trunk": TRUNK, "stem": STEM.model_args, "epochs": args.epochs, "steps": args.steps, "seeds": args.seeds,
        "batch": BATCH, "source_rate": SOURCE_RATE, "optimisers": {name: list(OPTIMISERS[name]) for name in OPTIMISERS},
        "clip": CLIP, "train_images": len(data.labels), "test_images": len(test.labels),
    }  # fmt: skip


def get_source(path: Path, epochs: int, data: Split) -> nn.Module:
    """Return the trained patchify model, from its file if that exists."""
    source = create_source()
    if path.exists():
        source.load_state_dict(torch.load(path, weights_only=True))
        return source.eval()
    steps = epochs * math.ceil(len(data.labels) / BATCH)
    train(source, data, 0, steps, ("adamw", SOURCE_RATE, OPTIMISERS["AdamW"][2]), show=True)
    torch.save(source.state_dict(), path)
    return source


def measure(source: nn.Module, twin: nn.Module, data: Split, test: Split, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the results, but for those of fine-tuning."""
    return {
        "report": twin.transplant_report.summary(),
        "function": compare(source, twin, test),
        "control": control(source, data, test, seeds),
        "drift": drift(source, twin, data, test),
    }


def load_results(path: Path) -> dict[str, Any]:
    """Return the results of an earlier call."""
    results = json.loads(path.read_text(encoding="utf-8"))
    results["runs"] = [Run(**{**row, "losses": tuple(row["losses"])}) for row in results["runs"]]
    return results


def holds(results: dict[str, Any]) -> bool:
    """Return whether the transplant changes at most one prediction, and every control is near chance."""
    changed = results["function"]["transplant, float32"]["changed"]
    return changed <= 1 and max(value for values in results["control"].values() for value in values) < CHANCE


def fine_tune_all(
    results: dict[str, Any], args: argparse.Namespace, models: tuple[nn.Module, nn.Module], data: Split, test: Split
) -> None:
    """Do the fine-tuning runs that ``results`` lacks, several at a time, and save after each."""
    begin, spent = time.perf_counter(), results["seconds"]
    done = {(run.optimiser, run.start, run.seed) for run in results["runs"]}
    jobs = [Job(name, start, seed) for seed in args.seeds for name in OPTIMISERS for start in COLOURS]
    jobs = [job for job in jobs if (job.optimiser, job.start, job.seed) not in done]
    threads = max(torch.get_num_threads() // args.jobs, 1)
    with ProcessPoolExecutor(
        args.jobs, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        futures = [pool.submit(fine_tune, job, models, data, test, args.steps) for job in jobs]
        for future in tqdm(as_completed(futures), total=len(jobs), desc="fine-tuning"):
            results["runs"].append(future.result())
            results["seconds"] = spent + time.perf_counter() - begin
            save(results, args.out)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args, begin = parse_args(argv), time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    source_file, results_file = args.out / "source.pt", args.out / "results.json"
    if not args.resume:
        source_file.unlink(missing_ok=True)
        results_file.unlink(missing_ok=True)
    data, test = (
        load_split(args.data_dir / name, args.out / f"{name}.pt", args.subset) for name in ("train", "validation")
    )
    source = get_source(source_file, args.epochs, data)
    twin = transplant(source, STEM, calibration=islice(batches(data, 0), CALIBRATION_BATCHES))
    setting = settings(args, data, test)
    if results_file.exists():
        results = load_results(results_file)
        if results["setting"] != setting:
            print(f"error: {results_file} has other settings; choose another --out", file=sys.stderr)
            return 2
    else:
        results = {"environment": environment(args.jobs), "setting": setting, "seconds": 0.0}
        results |= {**measure(source, twin, data, test, args.seeds), "runs": []}
        results["seconds"] = time.perf_counter() - begin
        save(results, args.out)
    fine_tune_all(results, args, (source, twin), data, test)
    print(to_text(results))
    return int(not holds(results))


if __name__ == "__main__":
    sys.exit(main())
