"""Finds, verifies and reads the weights of a registry entry."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from convstem import registry
from convstem.specs import WeightsSpec


def weights_path(entry: WeightsSpec) -> Path:
    """Return the local file of a weights entry: embedded, or fetched from the Hub into its cache.

    Raises:
        FileNotFoundError: the installation lacks the embedded file.
        OSError: the Hub cannot be reached and the file is not in the cache (huggingface_hub's own error).
    """
    if entry.file is None:
        from huggingface_hub import hf_hub_download  # only for weights on the Hub

        repository, revision = entry.hub_name
        return Path(hf_hub_download(repository, "model.safetensors", revision=revision, library_name="convstem"))
    path = registry.data_dir("registry") / entry.file
    if not path.is_file():
        raise FileNotFoundError(
            f"the embedded weights of {entry.name} are missing from the installation ({entry.file}); reinstall convstem"
        )
    return path


def load_weights(entry: WeightsSpec, *, check_hash: bool = True) -> dict[str, Tensor]:
    """Return the state dict of a weights entry, in timm's layout and on the CPU, transplanted if it has to be.

    Args:
        entry: the weights entry.
        check_hash: compare the file's sha256 with the registry's, where it is pinned.

    Raises:
        FileNotFoundError: the embedded file is missing.
        ValueError: the content's hash differs.
    """
    path = weights_path(entry)
    if check_hash and entry.sha256:
        check_sha256(path, entry.sha256)
    state = load_file(path)
    if entry.transform == "transplant":
        from convstem.transplant_model import transplant_state_dict  # imports timm

        spec = registry.models()[entry.architecture]
        return transplant_state_dict(state, spec.stem, entry.mean, entry.std)
    return state


def check_sha256(path: Path, expected: str) -> None:
    """Raise ``ValueError`` unless the file's content has this sha256."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise ValueError(f"{path.name} is damaged: expected sha256 {expected}, got {actual}; reinstall convstem")
