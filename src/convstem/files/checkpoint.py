"""Reads checkpoints of training scripts, and converts them into safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from convstem.errors import ExistingPathError, InvalidFileError, MissingPathError
from convstem.files.paths import path_errors
from convstem.files.safetensors import check_finite
from convstem.files.writing import write_whole
from convstem.layouts.conversion import convert


def convert_file(source: Path, out: Path, target: str = "timm", use_ema: bool = False) -> tuple[str, int]:
    """Write a checkpoint as safetensors in a layout, and return the layout it had and its number of tensors.

    Pickles (``.pth``, ``.pth.tar``, ``.bin``, ``.pt``) are read with ``weights_only=True``, which runs no code; the
    weights are taken out of training checkpoints, and the prefixes of DDP and ``torch.compile`` removed.

    Args:
        source: the checkpoint.
        out: the safetensors file to write.
        target: layout of the result.
        use_ema: take the averaged weights of a training checkpoint, if it has them.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: the checkpoint is not one of a ViT, or holds NaN or Inf; nothing is written.
    """
    from timm.models import load_state_dict

    if out.exists():
        raise ExistingPathError(f"{out} exists: name another file to write")
    if not source.is_file():
        raise MissingPathError(f"there is no file {source}: give the path of a checkpoint")
    try:
        state = load_state_dict(str(source), use_ema=use_ema, weights_only=True)
    except Exception as error:
        raise InvalidFileError(
            f"{source.name} cannot be read as weights ({type(error).__name__}): expected a state dict or a training "
            "checkpoint, as torch.save or safetensors write them; a pickle that would run code is never opened"
        ) from error
    converted = convert(state, target=target)
    layout, state = converted.source, converted.state_dict
    check_finite(state, source.name)
    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    with path_errors("write", out):
        write_whole(out, lambda temporary: save_file(tensors, temporary, {"format": "pt"}))
    return layout, len(state)


CHECKPOINTS = (".pt", ".pth", ".tar")
"""Suffixes of files that timm's train.py writes."""


def open_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a training checkpoint, opened so that nothing in it can run.

    Raises:
        ValueError: it holds more than tensors and plain values, or is no checkpoint.
    """
    import pickle

    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # train.py stores its arguments in one
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InvalidFileError(
            f"{path.name} cannot be opened without running code from it, so it was not: {error}"
        ) from error
    if not isinstance(checkpoint, dict) or "arch" not in checkpoint:
        raise InvalidFileError(f"{path.name} is not a checkpoint of timm's train.py: it does not name its architecture")
    return checkpoint
