"""The folder of a training: ``last.pth.tar``, from which it goes on, and ``log.jsonl``, for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from convstem.files.writing import write_whole
from experiments.cifar10.models import count, create
from experiments.cifar10.settings import Settings, changes
from experiments.machine import environment
from tools.cifar10 import SIZE

if TYPE_CHECKING:
    from experiments.cifar10.training import Training

CHECKPOINT, LOG = "last.pth.tar", "log.jsonl"


def save(training: Training, folder: Path) -> None:
    """Write checkpoint and log; each takes the place of the old one when it is complete."""
    write_whole(folder / CHECKPOINT, partial(torch.save, training.state_dict()))
    head = {
        "settings": asdict(training.settings),
        "environment": environment(device=training.device),
        **count(training.result, training.settings.size or SIZE),
        "hours": sum(row["seconds"] for row in training.history) / 3600,
        "cpu_hours": sum(row["cpu_seconds"] for row in training.history) / 3600,
    }
    text = "".join(json.dumps(row) + "\n" for row in (head, *training.history))
    write_whole(folder / LOG, lambda path: path.write_text(text, encoding="utf-8"))


def resume(training: Training, folder: Path) -> None:
    """Go on from a folder's checkpoint, if it has one; else make the folder.

    Raises:
        ValueError: the checkpoint is of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CHECKPOINT).exists():
        return
    state = torch.load(folder / CHECKPOINT, map_location=training.device, weights_only=True)
    if changed := changes(state["settings"], training.settings):
        raise ValueError(f"{folder} was begun with {changed}: choose another --out, or the same settings")
    training.load_state_dict(state)


def load_trained(folder: Path, device: str) -> nn.Module:
    """Return the model that a training ended with, in eval mode."""
    state = torch.load(folder / CHECKPOINT, map_location=device, weights_only=True)
    model = create(Settings(**state["settings"])).to(device)
    model.load_state_dict(state["state_dict_ema"] or state["state_dict"])
    return model.eval()


def read_log(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the head of a folder's log, and its rows."""
    head, *rows = map(json.loads, (folder / LOG).read_text(encoding="utf-8").splitlines())
    return head, rows
