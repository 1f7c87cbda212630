"""Crops of the sample photographs in scikit-image and scikit-learn, for measurements on natural images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import transforms

CALIBRATION = ("coffee", "rocket", "hubble_deep_field", "camera", "grass", "coins")
"""scikit-image photographs for calibrating quantisation."""

HELD_OUT = ("astronaut", "chelsea", "stereo_motorcycle", "china.jpg", "flower.jpg")
"""Photographs for evaluation; those with a suffix are scikit-learn's."""


def photograph(name: str) -> Image.Image:
    """Return a sample photograph of scikit-image, or of scikit-learn if the name has a suffix."""
    if "." in name:
        from sklearn.datasets import load_sample_image  # only here

        return Image.fromarray(load_sample_image(name))
    from skimage import data  # only here

    pixels = getattr(data, name)()
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")


def crops(names: Sequence[str], count: int, size: int) -> Tensor:
    """Return normalised random crops [count per photograph, 3, size, size], always the same.

    Args:
        names: of photographs.
        count: crops per photograph.
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
