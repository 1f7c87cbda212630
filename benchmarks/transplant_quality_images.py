"""Images of benchmarks/transplant_quality.py: crops of photographs, and random pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from convstem.transplanting.pixels import normalised_range
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import transforms

CALIBRATION = ("coffee", "rocket", "hubble_deep_field", "camera", "grass", "coins")
"""Photographs in scikit-image that a calibrated transplant measures."""

HELD_OUT = ("astronaut", "chelsea", "stereo_motorcycle", "china.jpg", "flower.jpg")
"""Photographs that everything is evaluated on; those with a suffix are scikit-learn's."""

SIZE = 224
"""Pixels of the images for patch embeddings."""

LOW, HIGH = (
    torch.tensor(end).view(3, 1, 1) for end in normalised_range(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, 3)
)
"""Black and white after normalisation."""

BEYOND = 8 / 255 / torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
"""8/255 of the pixel range, after normalisation."""


def photograph(name: str) -> Image.Image:
    """Return a sample photograph of scikit-image, or of scikit-learn if the name has a suffix."""
    if "." in name:
        from sklearn.datasets import load_sample_image  # only for this benchmark

        return Image.fromarray(load_sample_image(name))
    from skimage import data  # only for this benchmark

    pixels = getattr(data, name)()
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")


def crops(names: Sequence[str], count: int, size: int) -> Tensor:
    """Return normalised random crops [count per photograph, 3, size, size], always the same.

    Args:
        names: of photographs.
        count: crops of each.
        size: in pixels.
    """
    prepare = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.25, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )
    torch.manual_seed(0)
    return torch.stack([prepare(image) for image in map(photograph, names) for _ in range(count)])


def uniform(count: int, size: int) -> Tensor:
    """Return images [count, 3, size, size] of independent pixels over the whole pixel range."""
    torch.manual_seed(1)
    return LOW + (HIGH - LOW) * torch.rand(count, 3, size, size)


def outside(images: Tensor) -> Tensor:
    """Return images with every pixel moved 8/255 up or down, unclipped."""
    torch.manual_seed(2)
    return images + BEYOND * torch.randn_like(images).sign()


def corners(count: int, size: int) -> Tensor:
    """Return images whose pixels are all 8/255 below black or above white."""
    torch.manual_seed(3)
    return torch.where(torch.rand(count, 3, size, size) < 0.5, LOW - BEYOND, HIGH + BEYOND)
