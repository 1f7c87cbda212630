"""Calibration images for a transplant: from a tensor, a folder or a data loader to patch statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn

from convstem.errors import ArgumentTypeError, MissingPathError
from convstem.files.paths import path_errors
from convstem.transplanting.statistics import PatchStatistics, image_statistics

Calibration: TypeAlias = Tensor | str | Path | Iterable[Any]


_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def calibration_statistics(calibration: Calibration, model: nn.Module, patch_size: int) -> PatchStatistics:
    """Return the patch statistics of calibration images.

    Args:
        calibration: normalised images [batch, in_chans, height, width], a folder of images (searched recursively,
            prepared with the model's own evaluation transform), or an iterable of batches (images, or (images, ...)).
        model: whose transform applies to a folder.
        patch_size: in pixels.

    Raises:
        ArgumentError: no image holds a whole patch, or values are not finite.
        ArgumentTypeError: it is none of these, or its batches are no images.
        MissingPathError: a folder that does not exist or holds no images.
        PathError: an image cannot be read.
    """
    if isinstance(calibration, Tensor):
        return image_statistics([calibration], patch_size)
    if isinstance(calibration, (str, Path)):
        return image_statistics(_folder(Path(calibration), model), patch_size)
    if not isinstance(calibration, Iterable):
        raise ArgumentTypeError(
            "calibration is a tensor of images, a folder of images, or an iterable of batches such as a DataLoader; "
            f"got {type(calibration).__name__}"
        )
    return image_statistics(map(_images, calibration), patch_size)


def _images(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise ArgumentTypeError(
            "a batch of calibration is a tensor of images [batch, in_chans, height, width], or a tuple or list that "
            f"begins with one; got {type(images).__name__}: pass a generator that takes the images out of each batch"
        )
    return images


def _folder(folder: Path, model: nn.Module) -> Iterator[Tensor]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise MissingPathError(
            f"no calibration images in {folder}; expected files ending in {', '.join(sorted(_SUFFIXES))}"
        )
    transform = _transform(model)
    for path in paths:
        with path_errors("read", path), Image.open(path) as image:
            yield torch.unsqueeze(transform(image.convert("RGB")), 0)


def _transform(model: nn.Module) -> Any:
    from timm.data import create_transform, resolve_model_data_config

    return create_transform(**resolve_model_data_config(model), is_training=False)
