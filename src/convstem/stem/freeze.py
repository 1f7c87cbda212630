"""Freezes a stem for fine-tuning, in a way that ``model.train()`` does not undo."""

from __future__ import annotations

from torch import nn
from torchvision.models import VisionTransformer

from convstem.errors import UnsupportedModelError


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
    freeze_batch_norm_2d(stem)
    if not bn_only:
        stem.requires_grad_(False)
    return model


def find_stem(model: nn.Module) -> nn.Module:
    """Return the conv stem of a timm or torchvision model, or raise ``TypeError``."""
    if isinstance(model, VisionTransformer) and isinstance(model.conv_proj, nn.Sequential):
        return model.conv_proj
    from convstem.stem.embed import ConvStemEmbed

    stems = [module for module in model.modules() if isinstance(module, ConvStemEmbed)]
    if len(stems) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no conv stem to freeze; create one of convstem.list_models() or transplant it"
        )
    return stems[0].backbone
