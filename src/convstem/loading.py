"""Loads a pretrained model by name, repository or folder, in timm's layout or torchvision's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from convstem.errors import ArgumentError, MissingPathError
from convstem.files.safetensors import ALLOW_NONFINITE
from convstem.hosts.describe import find_weights
from convstem.hub.config import read_config
from convstem.hub.read import fetch_all
from convstem.hub.source import CONFIG, PICKLES, WEIGHTS, is_path, split_revision
from convstem.registry.names import PYRAMID
from convstem.registry.stem_spec import choice
from convstem.weights.devices import check_device

DTYPES = ("bfloat16", "float16", "float32", "float64")


def load(
    source: str | os.PathLike[str],
    *,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | str | None = None,
    layout: str = "timm",
    allow_nonfinite: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Return a pretrained conv-stem ViT in eval mode, ready for inference.

    Args:
        source: a timm name with or without tag, a torchvision name, a Hub repository (``org/name``, with ``@revision``
            if need be), or a folder with ``config.json`` and ``model.safetensors``.
        device: where to put the model, for example ``cuda``; default: torch's default device.
        dtype: floating-point type of the parameters, such as ``torch.bfloat16`` or its name; default: torch's default.
        layout: ``timm`` for timm's class, ``torchvision`` for torchvision's.
        allow_nonfinite: accept weights that hold NaN or Inf.
        kwargs: further arguments of ``timm.create_model``, such as ``num_classes`` or ``cache_dir``.

    Raises:
        ArgumentError: unknown layout, device or dtype, a file, or a model that torchvision cannot express.
        ArgumentTypeError: an argument that the model does not take; the message has the nearest one.
        CheckpointError: the weights do not fit the architecture.
        DeviceMemoryError: the device has no room for the model.
        HubError: the weights cannot be had from the Hub.
        InvalidFileError: damaged weights or config.
        MissingPathError: no such folder, or one without config or weights.
        UnknownModelError: unknown name; the message lists the nearest ones.
        UnsupportedModelError: the config is not of a conv-stem model; nothing was downloaded but that.
    """
    choice("layout", layout, ("timm", "torchvision"))
    check_device(device)
    placement = {"device": device, "dtype": as_dtype(dtype)}
    kwargs |= {key: value for key, value in placement.items() if value is not None}
    name = create_model_name(source, kwargs.get("cache_dir"))  # fetches a repository: wrong arguments end before
    allowed = ALLOW_NONFINITE.set(allow_nonfinite)
    try:
        model = timm.create_model(name, pretrained=True, **kwargs)
    finally:
        ALLOW_NONFINITE.reset(allowed)
    if layout == "torchvision":
        from convstem.models.twins import torchvision_twin

        model = torchvision_twin(model)
    return model.eval()


def create_model_name(source: str | os.PathLike[str], cache_dir: Any = None) -> str:
    """Return what ``timm.create_model`` calls this source; a repository is fetched, so that its commit is known.

    Errors are those of ``load``.
    """
    name = os.fspath(source).removeprefix("local-dir:")
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return f"local-dir:{folder}"
    if isinstance(source, os.PathLike) or is_path(name):
        raise _no_folder(name, folder.exists())
    if "/" in name:
        repository, revision = split_revision(name)
        commit = _fetch_checked(repository, revision, cache_dir)
        return f"hf-hub:{repository}@{commit}"
    entry = find_weights(name)
    return entry.name.replace(".", f"{PYRAMID}.", 1) if PYRAMID in name else entry.name


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a floating-point type for it or its name."""
    found = getattr(torch, dtype.removeprefix("torch."), dtype) if isinstance(dtype, str) else dtype
    if found is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise ArgumentError(f"dtype must be a floating-point type of torch or its name: {', '.join(DTYPES)}; got {dtype!r}")


def check_folder(folder: Path) -> None:
    """Raise unless a folder holds a config of ours, which leads nowhere else, and weights."""
    read_config(folder / CONFIG)
    if not any(path.name.endswith((".safetensors", *PICKLES)) for path in folder.iterdir()):
        raise MissingPathError(f"{folder} has a {CONFIG}, but no {WEIGHTS}")


def _fetch_checked(repository: str, revision: str | None, cache_dir: Any) -> str:
    """Fetch config and weights of one commit and return it; a config that is not ours costs no download of weights."""
    config = fetch_all(repository, [CONFIG], revision, cache_dir=cache_dir)[CONFIG]
    read_config(config.path)
    fetch_all(repository, [CONFIG, WEIGHTS], config.commit, cache_dir=cache_dir)
    return config.commit


def _no_folder(name: str, is_file: bool) -> ArgumentError | MissingPathError:
    takes = f"load takes the name of a model, a Hub repository org/name, or a folder with {CONFIG} and {WEIGHTS}"
    if is_file:
        return ArgumentError(f"{name} is a file: {takes}. `convstem convert {name} --out FOLDER` makes such a folder")
    return MissingPathError(f"there is no folder {name}: {takes}")
