"""A teacher's logits of every image in every view, computed once and saved in a folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from convstem.files.paths import write_whole
from experiments.cifar10.data import Split, View, normalise
from experiments.cifar10.models import autocast
from experiments.cifar10.settings import Settings

BATCH = 500


class Teacher:
    """A trained model; computes the logits of a view on first use.

    Args:
        model: the teacher, in eval mode.
        data: the images, on the teacher's device.
        settings: of the student; they define the views.
        folder: for one file per view.
    """

    def __init__(self, model: nn.Module, data: Split, settings: Settings, folder: Path) -> None:
        self.model, self.data, self.settings, self.folder = model, data, settings, folder

    def logits(self, view: int) -> Tensor:
        """Return the logits of all images in a view [count, classes], in half precision."""
        path = self.folder / f"{view}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, partial(torch.save, self.compute(view).cpu()))
        return torch.load(path, weights_only=True).to(self.data.labels.device)

    @torch.inference_mode()
    def compute(self, number: int) -> Tensor:
        """Return the logits of all images in a view [count, classes], in half precision."""
        view = View.draw(len(self.data.labels), number, self.settings)
        parts = torch.arange(len(self.data.labels)).split(BATCH)
        crop = self.settings.crop
        with autocast(self.settings, str(self.data.images.device)):
            logits = [self.model(normalise(view.apply(self.data.images, rows, crop))) for rows in parts]
        return torch.cat(logits).half()
