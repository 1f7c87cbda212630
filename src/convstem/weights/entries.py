"""Finds, verifies and reads the weights of a registry entry."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from convstem.errors import MissingPathError
from convstem.files.safetensors import read_weights
from convstem.hub.download import progress_bars
from convstem.hub.failures import again_if_deleted
from convstem.hub.locate import check_sha256
from convstem.registry import catalog, tables
from convstem.registry.records import WeightsSpec
from convstem.registry.stem_spec import StemSpec
from convstem.stem.carried import normalised_range
from convstem.stem.carry import carry


def weights_path(entry: WeightsSpec, progress: bool = True) -> Path:
    """Return the local file of a weights entry: embedded, or downloaded into the Hub's cache and verified.

    Args:
        entry: the weights entry.
        progress: show a progress bar while downloading.

    Raises:
        HubError: the file cannot be fetched from the Hub.
        MissingPathError: the installation lacks the embedded file.
    """
    if entry.file is None:
        from convstem.hub.read import fetch  # only for weights on the Hub

        repository, revision = entry.hub_name
        with progress_bars(progress):
            return fetch(repository, revision=revision).path
    path = tables.data_dir("registry") / entry.file
    if not path.is_file():
        raise MissingPathError(
            f"the embedded weights of {entry.name} are missing from the installation ({entry.file}); reinstall convstem"
        )
    return path


@again_if_deleted
def load_weights(
    entry: WeightsSpec, *, check_hash: bool = True, progress: bool = True, stem: StemSpec | None = None
) -> dict[str, Tensor]:
    """Return the state dict of a weights entry, in timm's layout, on the CPU, transplanted if necessary.

    The tensors are mapped from the file: their values are read on first use.

    Args:
        entry: the weights entry.
        check_hash: compare the file's sha256 with the registry's, if pinned. A download is compared with the Hub's hash
            in any case.
        progress: show a progress bar while downloading.
        stem: the stem to transplant into; default: the architecture's own.

    Raises:
        HubError: the file cannot be fetched from the Hub.
        InvalidFileError: the content's hash differs, or the weights are damaged or not finite.
        MissingPathError: the installation lacks the embedded file.
    """
    path = weights_path(entry, progress)
    if check_hash and entry.sha256:
        check_sha256(path, entry.sha256)
    state = read_weights(path)
    if entry.transform == "transplant":
        known = normalised_range(entry.mean, entry.std, 3)
        weight, bias = state.pop("patch_embed.proj.weight"), state.pop("patch_embed.proj.bias", None)
        carried, _ = carry(weight, bias, stem or catalog.models()[entry.architecture].stem, known and known[0])
        state.update({f"patch_embed.backbone.{key}": tensor for key, tensor in carried.items()})
    return state
