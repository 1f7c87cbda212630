"""One training, from its last checkpoint to its last epoch.

A checkpoint, ``last.pth.tar`` in a folder, is written at the end of each epoch. A killed training continues from there
and ends with the same weights, bit for bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from convstem.files.paths import write_whole
from experiments.cifar10 import models, optimizer
from experiments.cifar10.attack import perturb
from experiments.cifar10.data import (
    LAYERS,
    MIX,
    Split,
    batches,
    derive_seed,
    normalise,
    read,
    resize,
    steps_of,
    view_number,
)
from experiments.cifar10.settings import Settings, changes
from experiments.cifar10.teacher import Teacher
from experiments.machine import environment
from experiments.runs import Row
from tools.cifar10 import CLASSES, SIZE

CHECKPOINT = "last.pth.tar"
EVALUATION_BATCH = 500


class DivergedError(ArithmeticError):
    """The loss of a training is NaN or infinite."""


class Training:
    """A model and the state of its training.

    Args:
        settings: of the training.
        images: to train on, on ``device``.
        device: where to compute.
        teacher: its probabilities are part of the target, weighted by ``settings.teacher_share``.
        model: to train in place; default: a new one from the settings.
    """

    def __init__(
        self,
        settings: Settings,
        images: Split,
        device: str = "cpu",
        teacher: Teacher | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.settings, self.images, self.device, self.teacher = settings, images, device, teacher
        self.steps = steps_of(images, settings)
        self.model = models.create(settings).to(device) if model is None else model
        models.set_fused_attn(self.model, settings.fused_attn)
        decay = settings.model_ema_decay
        self.ema = ModelEmaV3(self.model, decay, use_warmup=True) if decay else None
        self.optimizer = optimizer.create(self.model, settings)
        self.schedule = create_scheduler_v2(
            self.optimizer, settings.sched, settings.epochs, decay_rate=1.0, warmup_epochs=settings.warmup_epochs,
            warmup_lr=settings.lr / 100, step_on_epochs=False, updates_per_epoch=self.steps,
        )[0]  # fmt: skip
        # the targets are already distributions, the teacher's included
        self.mix = Mixup(
            settings.mixup, settings.cutmix, prob=settings.mixup_prob, label_smoothing=0, num_classes=len(CLASSES),
            multi_label=True,
        )  # fmt: skip
        self.loss = SoftTargetCrossEntropy()
        self.losses: list[float] = []
        """Loss of each step in this epoch."""
        self.history: list[dict[str, Any]] = []
        """One row per epoch."""

    @property
    def result(self) -> nn.Module:
        """The model to use: the average of weights, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def targets(self, rows: Tensor, logits: Tensor | None) -> Tensor:
        """Return the target distributions [batch, classes]: smoothed labels, and the teacher's share.

        Args:
            rows: of the images [batch].
            logits: the teacher's for all images in this view [count, classes].
        """
        labels = mixup_target(self.images.labels[rows], len(CLASSES), smoothing=self.settings.smoothing)
        if logits is None:
            return labels
        taught = (logits[rows].float() / self.settings.temperature).softmax(1)
        return labels.lerp(taught, self.settings.teacher_share)

    def step(self, images: Tensor, targets: Tensor, update: int) -> float:
        """Update the weights once and return the loss.

        Raises:
            DivergedError: the loss is NaN or infinite; the weights are then unchanged.
        """
        with models.autocast(self.settings, self.device):
            if self.settings.attack_steps:
                radius, steps = self.settings.attack_radius, self.settings.attack_steps
                images = perturb(self.model, images, targets, self.loss, radius, steps)
            loss = self.loss(self.model(images), targets)
        if not math.isfinite(value := loss.item()):
            raise DivergedError(
                f"the loss became {value} in step {update % self.steps} of epoch {update // self.steps}: "
                f"the last checkpoint is of the epoch before; lower --lr ({self.settings.lr:g}) or set --clip-grad"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if self.settings.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        self.schedule.step_update(update + 1)
        if self.ema:
            self.ema.update(self.model, update + 1)
        return value

    def run_epoch(self, epoch: int, show: bool = False) -> dict[str, Any]:
        """Train for one epoch and return its row; times are in seconds."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        logits = self.teacher.logits(view_number(epoch, self.settings)) if self.teacher else None
        torch.manual_seed(derive_seed(self.settings.seed, LAYERS, epoch))  # stochastic depth and dropout
        numpy.random.seed(derive_seed(self.settings.seed, MIX, epoch))  # timm's Mixup
        self.mix.mixup_enabled = self.settings.mixed and not 0 < self.settings.mixup_off_epoch <= epoch
        self.model.train()
        self.losses = []
        steps = tqdm(batches(self.images, epoch, self.settings), f"epoch {epoch}", self.steps, mininterval=5,
                     leave=False, disable=not show)  # fmt: skip
        for index, (batch, rows) in enumerate(steps):
            batch, targets = self.mix(batch, self.targets(rows, logits))
            self.losses.append(self.step(batch, targets, epoch * self.steps + index))
        return {
            "epoch": epoch,
            "loss": sum(self.losses) / len(self.losses),
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": time.process_time() - begin_cpu,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue, under timm's names."""
        return {
            "arch": self.settings.model,
            "settings": asdict(self.settings),
            "epoch": len(self.history),
            "state_dict": self.model.state_dict(),
            "state_dict_ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint of the same settings."""
        self.model.load_state_dict(state["state_dict"])
        if self.ema:
            self.ema.module.load_state_dict(state["state_dict_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]
        self.schedule.step_update(len(self.history) * self.steps)

    def record(self) -> Row:
        """Return the record of the training: all but its weights."""
        return record(self.settings, self.history, self.result, self.device)


def record(settings: Settings, history: list[Row], model: nn.Module, device: str) -> Row:
    """Return settings, machine, size and hours of a training, and one row per epoch."""
    return {
        "settings": asdict(settings),
        "environment": environment(device=device),
        **models.count(model, settings.size or SIZE),
        "hours": sum(row["seconds"] for row in history) / 3600,
        "cpu_hours": sum(row["cpu_seconds"] for row in history) / 3600,
        "epochs": history,
    }


def resume(training: Training, folder: Path) -> None:
    """Continue from a folder's checkpoint, if it has one; else create the folder.

    Raises:
        ValueError: the checkpoint has other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CHECKPOINT).exists():
        return
    state = torch.load(folder / CHECKPOINT, map_location=training.device, weights_only=True)
    if changed := changes(state["settings"], training.settings):
        raise ValueError(f"{folder} was begun with {changed}: choose another --out, or the same settings")
    training.load_state_dict(state)


def save(training: Training, folder: Path) -> None:
    """Write the checkpoint; it replaces the old one when it is complete."""
    write_whole(folder / CHECKPOINT, partial(torch.save, training.state_dict()))


def load_trained(folder: Path, device: str) -> nn.Module:
    """Return the trained model of a folder, in eval mode."""
    state = torch.load(folder / CHECKPOINT, map_location=device, weights_only=True)
    model = models.create(Settings(**state["settings"])).to(device)
    model.load_state_dict(state["state_dict_ema"] or state["state_dict"])
    return model.eval()


def so_far(folder: Path) -> Row:
    """Return the record of an unfinished training, from its checkpoint."""
    state = torch.load(folder / CHECKPOINT, weights_only=True, map_location="cpu")
    settings = Settings(**state["settings"])
    return record(settings, state["history"], models.create(settings), "cpu")


@torch.inference_mode()
def accuracy(model: Callable[[Tensor], Tensor], split: Split, size: int = 0) -> float:
    """Return the accuracy of a model in eval mode, in per cent, on images resized to ``size`` unless it is 0."""
    parts = zip(split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True)
    right = sum(int((model(resize(normalise(images), size)).argmax(1) == labels).sum()) for images, labels in parts)
    return 100 * right / len(split.labels)


def train(training: Training, test: Split, folder: Path, show: bool = False) -> None:
    """Train from the checkpoint in a folder, or from the start, to the last epoch.

    Raises:
        DivergedError: the loss is NaN or infinite.
        ValueError: the folder was begun with other settings.
    """
    resume(training, folder)
    settings = training.settings
    for epoch in range(len(training.history), settings.epochs):
        row = training.run_epoch(epoch, show)
        last, due = epoch + 1 == settings.epochs, settings.eval_interval and not (epoch + 1) % settings.eval_interval
        if last or due:
            row["accuracy"] = accuracy(training.result.eval(), test, settings.size)
        training.history.append(row)
        save(training, folder)


def run(settings: Settings, data_dir: Path, folder: Path, device: str, teacher: Path | None = None) -> Row:
    """Read the images, train from a folder's checkpoint to the last epoch with a progress bar; return the record.

    Args:
        data_dir: image folder written by tools/cifar10.py.
        folder: of the checkpoint.
        teacher: folder of a finished training.

    Raises:
        DivergedError: the loss is NaN or infinite.
        ValueError: the folder was begun with other settings.
    """
    images, test = read(data_dir, settings, device)
    taught = Teacher(load_trained(teacher, device), images, settings, folder / "logits") if teacher else None
    training = Training(settings, images, device, taught)
    train(training, test, folder, show=True)
    return training.record()
