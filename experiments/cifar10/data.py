"""CIFAR-10 in memory: the images, their normalisation, and their augmentation one batch at a time.

Every random number depends only on the seed, its purpose, and the epoch or view. So a training can continue without a
saved random state, and a view of an image can be drawn again for its teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from experiments.cifar10.settings import Settings
from tools.cifar10 import CLASSES

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

ORDER, SHIFT, FLIP, MIX, LAYERS = range(5)
"""Purposes of random numbers."""


@dataclass(frozen=True)
class Split:
    """Images as bytes [count, 3, 32, 32] and their labels [count]."""

    images: Tensor
    labels: Tensor


def load_split(folder: Path, cache: Path, limit: int) -> Split:
    """Return one split of the image folder, from the cache if it exists.

    Args:
        folder: has one folder of PNG files for each class.
        cache: file of tensors to read or write.
        limit: number of images, the same for each class; 0: all, and only then is the cache used.
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
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images / 255 - mean) / std


def derive_seed(*parts: int) -> int:
    """Return a seed made from several numbers."""
    return int(numpy.random.SeedSequence(parts).generate_state(1)[0])


def generator(*parts: int) -> torch.Generator:
    """Return a generator seeded by several numbers."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def read(folder: Path, settings: Settings, device: str) -> tuple[Split, Split]:
    """Return the training images and the evaluation images, in channels-last memory.

    Args:
        folder: image folder written by tools/cifar10.py; it also gets both splits as tensors.
        device: for the images.
    """
    train = load_split(folder / "train", folder / "train.pt", 0)
    test = load_split(folder / "validation", folder / "validation.pt", 0)
    if settings.holdout:
        test = of_each_class(train, -settings.holdout, None)
        train = of_each_class(train, None, -settings.holdout)
    if settings.train_images:
        train = of_each_class(train, None, settings.train_images)
    return move(train, device), move(test, device)


def of_each_class(split: Split, begin: int | None, end: int | None) -> Split:
    """Return the same slice of every class; the bounds count the images of all classes together."""
    bounds = slice(*(None if bound is None else bound // len(CLASSES) for bound in (begin, end)))
    rows = torch.cat([(split.labels == label).nonzero().flatten()[bounds] for label in range(len(CLASSES))])
    return Split(split.images[rows], split.labels[rows])


def move(split: Split, device: str) -> Split:
    """Return a split on a device, with images in channels-last memory."""
    images = split.images.to(device, memory_format=torch.channels_last)
    return Split(images, split.labels.to(device))


@dataclass(frozen=True)
class View:
    """One augmentation of all images: the shift of each [2, count], and whether it is mirrored [count]."""

    shift: Tensor
    mirrored: Tensor

    @classmethod
    def draw(cls, count: int, number: int, settings: Settings) -> View:
        """Return the view with this number; alternating flips start at random and change with every number."""
        shift = torch.randint(2 * settings.crop + 1, (2, count), generator=generator(settings.seed, SHIFT, number))
        turn = 0 if settings.flip == "alternating" else number
        mirrored = torch.rand(count, generator=generator(settings.seed, FLIP, turn)) < 0.5
        if settings.flip == "alternating" and number % 2:
            mirrored = ~mirrored
        return cls(shift, mirrored if settings.flip != "none" else torch.zeros_like(mirrored))

    def apply(self, images: Tensor, rows: Tensor, crop: int) -> Tensor:
        """Return some of the images [count, 3, size, size] as bytes [rows, 3, size, size], shifted and mirrored."""
        size = images.shape[-1]
        source = functional.pad(torch.arange(size)[None].float(), (crop, crop), "reflect")[0].long()
        down, right = (source[self.shift[:, rows, None] + torch.arange(size)]).to(images.device)
        right = torch.where(self.mirrored[rows, None].to(images.device), right.flip(1), right)
        rows = rows.to(images.device)
        pixels = images.permute(0, 2, 3, 1)[rows[:, None, None], down[:, :, None], right[:, None, :]]
        return pixels.permute(0, 3, 1, 2)


def view_number(epoch: int, settings: Settings) -> int:
    """Return the number of the view in an epoch: a new one, or the kept ones in turn."""
    return epoch % settings.views if settings.views else epoch


def batches(data: Split, epoch: int, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the full batches of an epoch: normalised images [batch, 3, size, size], and their rows [batch]."""
    view = View.draw(len(data.labels), view_number(epoch, settings), settings)
    order = torch.randperm(len(data.labels), generator=generator(settings.seed, ORDER, epoch))
    for rows in order[: steps_of(data, settings) * settings.batch_size].split(settings.batch_size):
        images = normalise(view.apply(data.images, rows, settings.crop))
        yield resize(images, settings.small_size if epoch < settings.small_epochs else settings.size), rows


def resize(images: Tensor, size: int) -> Tensor:
    """Return images [batch, 3, height, width] resized to a side in pixels; 0: as they are."""
    if size in (0, images.shape[-1]):
        return images
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True)


def steps_of(data: Split, settings: Settings) -> int:
    """Return the steps of an epoch.

    Raises:
        ValueError: there are fewer images than the steps need.
    """
    steps = settings.epoch_steps or max(len(data.labels) // settings.batch_size, 1)
    if len(data.labels) < steps * settings.batch_size:
        raise ValueError(
            f"{len(data.labels)} images do not fill {steps} batches of {settings.batch_size}: "
            "take fewer steps, smaller batches or more images"
        )
    return steps
