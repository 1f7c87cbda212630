"""Batches, models, training and the three experiments of experiments/transplant_cifar10.py."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from convstem import StemSpec, freeze_stem
from convstem.transplanting.surgery import put_stem
from experiments.cifar10.data import MEAN, STD, Split, normalise
from tools.cifar10 import CLASSES, SIZE

BATCH = 128
TRUNK = {"img_size": SIZE, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2, "num_classes": len(CLASSES)}

STEM = StemSpec((64, 128))
"""Two stride-2 layers, wide enough to carry every pixel with both signs."""

ESTIMATION_BATCHES = 8
"""Batches for re-estimating the control's BatchNorm statistics."""

CLIP = 1.0
"""Largest norm of the gradient."""

OPTIMISERS = {"AdamW": ("adamw", 1e-3, 0.05), "SGD": ("momentum", 0.02, 0.0)}
"""timm name, peak rate and weight decay of fine-tuning; the rates are not tuned. SGD has momentum 0.9."""

WINDOW = 50
"""Number of first and of last steps over which the training loss is averaged."""

STARTS = ("patchify, continuing", "transplant", "transplant, frozen BatchNorm", "re-initialised conv stem")
"""Starts of fine-tuning, in the order of the tables."""

DRIFT_FORWARDS = (1, 10, 100)
DRIFT_BATCHES = (128, 8)
DRIFT_NORMS = {"BatchNorm, momentum 0.1": 0.1, "BatchNorm, momentum 0.01": 0.01, "frozen BatchNorm": None}
DRIFT_IMAGES = 1000
"""Test images for the error of the patch embedding."""


@dataclass(frozen=True)
class Job:
    """One fine-tuning run to do."""

    optimiser: str
    start: str
    seed: int


@dataclass(frozen=True)
class Run(Job):
    """One finished fine-tuning run; the accuracy is a fraction of the test images."""

    accuracy: float
    first: float
    """Mean training loss of the first steps."""
    last: float
    """Mean training loss of the last steps."""
    losses: tuple[float, ...]


# Batches, models, training, evaluation


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return random crops of images [batch, 3, 32, 32] padded with 4 black pixels; half of them are mirrored."""
    count, pad = len(images), 4
    top, left = torch.randint(2 * pad + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows, columns = top + torch.arange(SIZE), left + torch.arange(SIZE)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = functional.pad(images, [pad] * 4)
    return padded[torch.arange(count).view(-1, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def batches(data: Split, seed: int, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented, normalised images and their labels forever, each epoch in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(data.labels), generator=generator).split(size):
            yield normalise(augment(data.images[rows], generator)), data.labels[rows]


def create_source() -> nn.Module:
    """Return the untrained patchify ViT."""
    torch.manual_seed(0)
    overlay = {"mean": MEAN, "std": STD}
    return timm.create_model("vit_tiny_patch16_224", pretrained_cfg_overlay=overlay, **TRUNK)


def reinitialised(source: nn.Module, seed: int) -> nn.Module:
    """Return the source with a randomly initialised conv stem."""
    torch.manual_seed(seed)
    model = copy.deepcopy(source)
    put_stem(model, STEM)
    return model


def train(
    model: nn.Module,
    data: Split,
    seed: int,
    steps: int,
    optimiser: tuple[str, float, float],
    show: bool = False,
    batch: int = BATCH,
) -> list[float]:
    """Train a model in place, with warm-up over 5 % of the steps and cosine decay to zero; return its losses.

    Args:
        seed: for the order of the images and their augmentation.
        optimiser: timm name, peak rate and weight decay.
        show: show a progress bar.
        batch: images per step.
    """
    name, rate, decay = optimiser
    update = create_optimizer_v2(model, name, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        update, lambda step: min(20 * (step + 1) / steps, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    losses = []
    progress = tqdm(total=steps, desc="source model", mininterval=5, disable=not show)
    model.train()
    for images, labels in islice(batches(data, seed, batch), steps):
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
    """Return a model's logits [count, classes] in eval mode, under bfloat16 autocast if ``bf16``."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return torch.cat([model(normalise(part)).float() for part in images.split(250)])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of correct predictions."""
    return (logits.argmax(1) == labels).double().mean().item()


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the root-mean-square difference divided by the root mean square of the expected values."""
    return ((found - expected).double().norm() / expected.double().norm()).item()


# The three experiments


def compare(source: nn.Module, twin: nn.Module, test: Split) -> dict[str, dict[str, float]]:
    """Return accuracies of source and transplant in both precisions, and their distance from the float32 source."""
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
    """Return the accuracies of the source with re-initialised stems, by kind of BatchNorm statistics."""
    found: dict[str, list[float]] = {"fresh": [], "re-estimated": []}
    for seed in seeds:
        model = reinitialised(source, seed)
        found["fresh"].append(accuracy(predict(model, test.images), test.labels))
        set_momentum(model, None)  # a plain average over the batches
        forward_stem(model, data, seed, range(ESTIMATION_BATCHES), BATCH)
        found["re-estimated"].append(accuracy(predict(model, test.images), test.labels))
    return found


def set_momentum(model: nn.Module, momentum: float | None) -> None:
    """Set the momentum of every BatchNorm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


@torch.no_grad()
def forward_stem(model: nn.Module, data: Split, seed: int, steps: Sequence[int], size: int) -> None:
    """Run a model's stem in train mode, without weight updates, on the batches with these numbers."""
    model.patch_embed.train()
    for images, _ in islice(batches(data, seed, size), steps[0], steps[-1] + 1):
        model.patch_embed(images)
    model.patch_embed.eval()


@torch.no_grad()
def drift(source: nn.Module, twin: nn.Module, data: Split, test: Split) -> list[dict[str, Any]]:
    """Return the patch embedding's relative error and the accuracy after train-mode forward passes of the stem."""
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
    """Fine-tune one model and return its results.

    Args:
        models: source and transplant, which stay unchanged.
    """
    model = start_model(job.start, *models, job.seed)
    losses = train(model, data, 1000 + job.seed, steps, OPTIMISERS[job.optimiser])  # other batches than the source's
    score = accuracy(predict(model, test.images), test.labels)
    first, last = statistics.fmean(losses[:WINDOW]), statistics.fmean(losses[-WINDOW:])
    return Run(job.optimiser, job.start, job.seed, score, first, last, tuple(round(loss, 4) for loss in losses))
