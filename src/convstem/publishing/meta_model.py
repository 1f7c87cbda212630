"""Builds the model that a ``config.json`` describes, as loading it would, without memory for its parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convstem.errors import InvalidFileError


def meta_model(folder: Path) -> Any:
    """Return the model of a folder on the meta device, its config resolved by timm and an image passed through it.

    Raises:
        InvalidFileError: the config describes no model, or one that cannot take the images that it describes.
    """
    import timm
    import torch

    model = timm.create_model(f"local-dir:{folder}", device="meta").eval()
    size = model.pretrained_cfg["input_size"]
    try:
        model(torch.empty(1, *size, device="meta"))
    except Exception as error:  # whatever timm and torch say of such an image
        raise InvalidFileError(
            f"config.json describes a model that cannot take images of its input_size {list(size)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return model
