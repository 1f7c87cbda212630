"""Images of experiments/transplant_cifar10.py: reading, normalising and augmenting them."""

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

from tools.cifar10 import CLASSES, SIZE

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH = 128


@dataclass(frozen=True)
class Split:
    """Images as bytes [count, 3, 32, 32] and their labels [count]."""

    images: Tensor
    labels: Tensor


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
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
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
