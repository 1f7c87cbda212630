"""Loads a pretrained model by name, repository or folder, in timm's layout or torchvision's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import timm
from torch import nn

from convstem.errors import UnsupportedModelError
from convstem.files.safetensors import ALLOW_NONFINITE
from convstem.hosts.timm_tags import find_weights
from convstem.hub.config import read_config
from convstem.hub.names import CONFIG, WEIGHTS
from convstem.hub.read import fetch_all
from convstem.registry.catalog import PYRAMID
from convstem.registry.stem_spec import choice
from convstem.stem.embed import ConvStemEmbed
from convstem.stem.maps import StemMaps


def load(
    source: str | os.PathLike[str],
    *,
    device: Any = None,
    dtype: Any = None,
    layout: str = "timm",
    allow_nonfinite: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Return a pretrained conv-stem ViT in eval mode, ready for inference.

    Args:
        source: a timm name with or without tag, a torchvision name, a Hub repository (``org/name``, with ``@revision``
            if need be), or a folder with ``config.json`` and ``model.safetensors``.
        device: where to put the model, for example ``cuda``; default: torch's default device.
        dtype: floating-point type of the parameters; default: torch's default type.
        layout: ``timm`` for timm's class, ``torchvision`` for torchvision's.
        allow_nonfinite: accept weights that hold NaN or Inf.
        kwargs: further arguments of ``timm.create_model``, such as ``num_classes`` or ``cache_dir``.

    Raises:
        ArgumentError: unknown layout, or a model that torchvision cannot express.
        ArgumentTypeError: an argument that the model does not take; the message has the nearest one.
        CheckpointError: the weights do not fit the architecture.
        HubError: the weights cannot be had from the Hub.
        InvalidFileError: damaged weights.
        UnknownModelError: unknown name; the message lists the nearest ones.
        UnsupportedModelError: the source is not a conv-stem model.
    """
    choice("layout", layout, ("timm", "torchvision"))
    name = create_model_name(source, kwargs.get("cache_dir"))
    for key, value in (("device", device), ("dtype", dtype)):
        if value is not None:
            kwargs[key] = value
    allowed = ALLOW_NONFINITE.set(allow_nonfinite)
    try:
        model = timm.create_model(name, pretrained=True, **kwargs)
    finally:
        ALLOW_NONFINITE.reset(allowed)
    if not any(isinstance(module, (ConvStemEmbed, StemMaps)) for module in model.modules()):
        raise UnsupportedModelError(
            f"{source} is a {type(model).__name__} without a conv stem: use convstem.transplant on it"
        )
    if layout == "torchvision":
        from convstem.models.twins import torchvision_twin

        model = torchvision_twin(model)
    return model.eval()


def create_model_name(source: str | os.PathLike[str], cache_dir: Any = None) -> str:
    """Return what ``timm.create_model`` calls this source; a repository is fetched, so that its commit is known.

    Raises:
        HubError: the repository cannot be had.
        UnknownModelError: not a name, or not a tag of it; the message lists the nearest names or the tags.
    """
    name = os.fspath(source).removeprefix("local-dir:")
    if Path(name).is_dir():
        read_config(Path(name) / CONFIG)  # refuses one that timm would follow anywhere
        return f"local-dir:{name}"
    repository = name.removeprefix("hf-hub:")
    if "/" in repository:
        repository, _, revision = repository.partition("@")
        files = fetch_all(repository, [CONFIG, WEIGHTS], revision or None, cache_dir=cache_dir)
        read_config(files[CONFIG].path)
        return f"hf-hub:{repository}@{files[CONFIG].commit}"
    entry = find_weights(name)
    return entry.name.replace(".", f"{PYRAMID}.", 1) if PYRAMID in name else entry.name
