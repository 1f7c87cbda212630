"""Loads a pretrained model by name, repository or folder, as timm's or torchvision's class."""

from __future__ import annotations

import os
from typing import Any

import timm
import torch
from torch import nn

from convstem.files.safetensors import ALLOW_NONFINITE
from convstem.hosts.describe import find_weights
from convstem.hub.config import parts
from convstem.hub.failures import again_if_deleted
from convstem.hub.model import SavedCfg, fetch_model, read_model
from convstem.hub.source import Source, source_of
from convstem.registry.stem_spec import choice
from convstem.registry.tables import PYRAMID
from convstem.weights.devices import as_dtype, check_device


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
        source: a timm name with or without tag, a torchvision name, a Hub repository (``org/name``, optionally with
            ``@revision``), or a folder with ``config.json`` and ``model.safetensors``.
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
        HubError: the weights cannot be fetched from the Hub.
        InvalidFileError: damaged weights or config.
        MissingPathError: no such folder, or no config or weights in it.
        UnknownModelError: unknown name; the message lists the nearest ones.
        UnsupportedModelError: not a conv-stem model's config; only the config was downloaded.
    """
    choice("layout", layout, ("timm", "torchvision"))
    check_device(device)
    placement = {"device": device, "dtype": as_dtype(dtype)}
    kwargs |= {key: value for key, value in placement.items() if value is not None}
    allowed = ALLOW_NONFINITE.set(allow_nonfinite)
    try:
        model = _create(source_of("load", source), kwargs)
    finally:
        ALLOW_NONFINITE.reset(allowed)
    if layout == "torchvision":
        from convstem.models.twins import torchvision_twin

        model = torchvision_twin(model)
    return model.eval()


@again_if_deleted
def _create(source: Source, kwargs: dict[str, Any]) -> nn.Module:
    if source.kind == "name":
        return timm.create_model(with_tag(source.name), pretrained=True, **kwargs)
    saved = fetch_model(source, kwargs.get("cache_dir")) if source.kind == "repository" else read_model(source.path)
    cfg, args = parts(saved.config)
    return timm.create_model(
        saved.config["architecture"],
        pretrained=True,
        pretrained_cfg=SavedCfg(cfg, saved),
        pretrained_model_args=args,
        **{**args, **kwargs},
    )


def with_tag(name: str) -> str:
    """Return a pretrained model's timm name with its tag.

    Args:
        name: timm or torchvision name, with or without tag.

    Raises:
        UnknownModelError: unknown name; the message lists the nearest ones.
    """
    entry = find_weights(name)
    return entry.name.replace(".", f"{PYRAMID}.", 1) if PYRAMID in name else entry.name
