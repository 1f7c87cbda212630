"""One training, from its last checkpoint to its last epoch.

A checkpoint is written whole at the end of each epoch; a training that is killed goes on from there and ends with the
same weights, bit for bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
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

from experiments.cifar10 import checkpoints, models, optimizer
from experiments.cifar10.attack import perturb
from experiments.cifar10.data import LAYERS, MIX, batches, derive_seed, read, resize, steps_of, view_number
from experiments.cifar10.settings import Settings
from experiments.cifar10.teacher import Teacher
from experiments.transplant_cifar10_data import Split, normalise
from tools.cifar10 import CLASSES

EVALUATION_BATCH = 500


class DivergedError(ArithmeticError):
    """The loss of a training is no number any more."""


class Training:
    """A model with all that changes while it trains.

    Args:
        settings: what the result depends on.
        images: to train on, on ``device``.
        device: where to compute.
        teacher: whose probabilities are part of the target, if ``settings.teacher_share`` is not 0.
        model: to train in place; default: a new one, as the settings say.
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
        # mixes targets that are distributions already, the teacher's included
        self.mix = Mixup(
            settings.mixup, settings.cutmix, prob=settings.mixup_prob, label_smoothing=0, num_classes=len(CLASSES),
            multi_label=True,
        )  # fmt: skip
        self.loss = SoftTargetCrossEntropy()
        self.losses: list[float] = []
        """Of the steps of the epoch."""
        self.history: list[dict[str, Any]] = []
        """A row of the log for each epoch."""

    @property
    def result(self) -> nn.Module:
        """The model to use: the average of weights where one is kept."""
        return self.model if self.ema is None else self.ema.module

    def targets(self, rows: Tensor, logits: Tensor | None) -> Tensor:
        """Return the distributions to learn [batch, classes]: smoothed labels, and the teacher's share.

        Args:
            rows: of the images [batch].
            logits: the teacher's of all images in this view [count, classes].
        """
        labels = mixup_target(self.images.labels[rows], len(CLASSES), smoothing=self.settings.smoothing)
        if logits is None:
            return labels
        taught = (logits[rows].float() / self.settings.temperature).softmax(1)
        return labels.lerp(taught, self.settings.teacher_share)

    def step(self, images: Tensor, targets: Tensor, update: int) -> float:
        """Update the weights once and return the loss.

        Raises:
            DivergedError: the loss is NaN or infinite; the weights are then what they were.
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
        """Train for one epoch and return its row of the log; times are in seconds."""
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
        """Return everything needed to go on, under timm's names."""
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
        """Go on from a checkpoint of the same settings."""
        self.model.load_state_dict(state["state_dict"])
        if self.ema:
            self.ema.module.load_state_dict(state["state_dict_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]
        self.schedule.step_update(len(self.history) * self.steps)


@torch.inference_mode()
def accuracy(model: Callable[[Tensor], Tensor], split: Split, size: int = 0) -> float:
    """Return the share of images, resized if asked for, that a model in eval mode classifies right, in per cent."""
    parts = zip(split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True)
    right = sum(int((model(resize(normalise(images), size)).argmax(1) == labels).sum()) for images, labels in parts)
    return 100 * right / len(split.labels)


def train(training: Training, test: Split, folder: Path, show: bool = False) -> list[dict[str, Any]]:
    """Train from the checkpoint in a folder, or from the start, to the last epoch; return the log's rows.

    Raises:
        DivergedError: the loss is NaN or infinite.
        ValueError: the folder was begun with other settings.
    """
    checkpoints.resume(training, folder)
    settings = training.settings
    for epoch in range(len(training.history), settings.epochs):
        row = training.run_epoch(epoch, show)
        last, due = epoch + 1 == settings.epochs, settings.eval_interval and not (epoch + 1) % settings.eval_interval
        if last or due:
            row["accuracy"] = accuracy(training.result.eval(), test, settings.size)
        training.history.append(row)
        checkpoints.save(training, folder)
    return training.history


def run(settings: Settings, data_dir: Path, out: Path, device: str, teacher: Path | None = None) -> None:
    """Read the images, train from what is in ``out`` to the last epoch, and show a progress bar.

    Args:
        data_dir: image folder written by tools/cifar10.py.
        out: folder of the training.
        teacher: folder of a finished training.

    Raises:
        DivergedError: the loss is NaN or infinite.
        ValueError: the folder was begun with other settings.
    """
    images, test = read(data_dir, settings, device)
    taught = Teacher(checkpoints.load_trained(teacher, device), images, settings, out / "logits") if teacher else None
    train(Training(settings, images, device, taught), test, out, show=True)
