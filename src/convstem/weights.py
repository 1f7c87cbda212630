"""Finds, verifies and reads the weights of a registry entry."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from convstem import registry
from convstem.specs import WeightsSpec


def weights_path(entry: WeightsSpec) -> Path:
    """Return the local file of a weights entry.

    Raises:
        FileNotFoundError: the installation lacks the embedded file.
    """
    path = registry.data_dir("registry") / str(entry.file)
    if not path.is_file():
        raise FileNotFoundError(
            f"the embedded weights of {entry.name} are missing from the installation ({entry.file}); reinstall convstem"
        )
    return path


def load_weights(entry: WeightsSpec, *, check_hash: bool = True) -> dict[str, Tensor]:
    """Return the state dict of a weights entry, in timm's layout and on the CPU.

    Args:
        entry: the weights entry.
        check_hash: compare the file's sha256 with the registry's.

    Raises:
        FileNotFoundError: the embedded file is missing.
        ValueError: the content's hash differs.
    """
    path = weights_path(entry)
    if check_hash:
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        if actual != entry.sha256:
            raise ValueError(
                f"{path.name} is damaged: expected sha256 {entry.sha256}, got {actual}; reinstall convstem"
            )
    return load_file(path)
