"""What experiments/transplant_gain.py starts from: the source, its transplant, and its trunk under a new stem."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convstem import transplant
from convstem.registry.stem_spec import default_stem
from convstem.transplanting.surgery import put_stem
from experiments.cifar10.checkpoints import CHECKPOINT, load_trained
from experiments.transplant_cifar10_data import MEAN, STD
from experiments.transplant_gain_report import Job


def load_source(folder: Path, device: str) -> nn.Module:
    """Return the patchify model that a training ended with, in eval mode.

    Raises:
        ValueError: the folder holds no training.
    """
    if not (folder / CHECKPOINT).is_file():
        raise ValueError(
            f"expected the folder of a training with {CHECKPOINT}; got {folder}: "
            "train a source with experiments.cifar10, or make one of pretrained weights with experiments.linear_probe"
        )
    model: Any = load_trained(folder, device)
    model.pretrained_cfg.update(mean=MEAN, std=STD)  # the pixels it sees, which a transplant asks for
    return model


def start_model(job: Job, source: nn.Module) -> nn.Module:
    """Return a fresh copy of the model that a run starts from, with what its scope does not train frozen."""
    model: Any = copy.deepcopy(source)
    if job.start == "transplant":
        model = transplant(source)
    if job.start == "new stem":
        torch.manual_seed(job.seed)
        patch, channels = model.patch_embed.patch_size[0], model.patch_embed.proj.in_channels
        put_stem(model, default_stem(patch, model.embed_dim, channels))
    if job.scope != "all":
        model.requires_grad_(False)
        for part in (model.patch_embed, model.get_classifier()):
            part.requires_grad_(True)
    return model
