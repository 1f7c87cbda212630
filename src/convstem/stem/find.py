"""Finds the stem of a model of either host, and freezes it for fine-tuning."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models import VisionTransformer

from convstem.errors import UnsupportedModelError
from convstem.stem.maps import StemMaps


def find_stem(model: nn.Module) -> nn.Sequential:
    """Return the layers of the conv stem in a model of timm or torchvision, or in a feature pyramid of one.

    Raises:
        UnsupportedModelError: there is none.
    """
    if isinstance(model, VisionTransformer) and isinstance(model.conv_proj, nn.Sequential):
        return model.conv_proj
    embed = find_embed(model)
    if embed is not None:
        return embed.backbone
    for module in model.modules():
        if isinstance(module, StemMaps):
            return module
    raise UnsupportedModelError(
        f"{type(model).__name__} has no conv stem; create one of convstem.list_models() or transplant it"
    )


def find_embed(model: nn.Module) -> Any:
    """Return the ``ConvStemEmbed`` of a timm model, or None."""
    path = embed_path(model)
    return None if path is None else model.get_submodule(path)


def embed_path(model: nn.Module) -> str | None:
    """Return where the ``ConvStemEmbed`` of a timm model lies, or None."""
    from convstem.stem.embed import ConvStemEmbed  # imports timm, which torchvision's models do not need

    return next((path for path, module in model.named_modules() if isinstance(module, ConvStemEmbed)), None)


def freeze_stem(model: nn.Module, bn_only: bool = False) -> nn.Module:
    """Freeze a model's stem in place and return the model.

    BatchNorm becomes timm's or torchvision's frozen BatchNorm, whose statistics, weight and bias are constants: there
    is no mode to switch back. State-dict keys stay, but for ``num_batches_tracked``.

    Args:
        model: a conv-stem ViT of timm or torchvision.
        bn_only: freeze only the norms; the stem's convolutions go on training.

    Raises:
        UnsupportedModelError: the model has no conv stem.
    """
    from timm.layers import freeze_batch_norm_2d

    stem = find_stem(model)
    with next(stem.parameters()).device:  # timm makes the frozen ones on torch's default device
        freeze_batch_norm_2d(stem)
    if not bn_only:
        stem.requires_grad_(False)
    return model
