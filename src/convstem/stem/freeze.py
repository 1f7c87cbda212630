"""Freezes a stem for fine-tuning, in a way that ``model.train()`` does not undo."""

from __future__ import annotations

from torch import nn

from convstem.stem.find import find_stem


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
