"""What a checkpoint is, told from its keys and shapes, so that a wrong one is named instead of listed key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from convstem.layouts import convert, detect_layout

_STEM = "patch_embed.backbone."
_PATCHIFY = "patch_embed.proj.weight"


def explain_mismatch(state_dict: Mapping[str, Any], model: nn.Module, layout: str) -> list[str]:
    """Return the sentence that says what kind of checkpoint this is instead, or an empty list if it fits.

    Args:
        state_dict: the checkpoint.
        model: one of our models.
        layout: the model's layout, ``timm`` or ``torchvision``.
    """
    found = detect_layout(state_dict)
    if found not in (None, layout):
        return [
            f"this checkpoint has the layout {found!r}, the model has {layout!r}: load "
            f"convstem.convert(state_dict, source={found!r}, target={layout!r}) instead."
        ]
    actual, expected = _patch_embedding(state_dict, layout), _patch_embedding(model.state_dict(), layout)
    if _PATCHIFY in actual and not any(key.startswith(_STEM) for key in actual):
        return [_patchify_sentence(actual[_PATCHIFY])]
    if actual and _channels(actual) != _channels(expected):
        return [
            f"this checkpoint has another stem: its conv channels are {_channels(actual)}, the model's are "
            f"{_channels(expected)}. Create the model with the checkpoint's stem_channels and stem_strides."
        ]
    return []


def _patch_embedding(state_dict: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Return the tensors of the patch embedding under timm's keys."""
    prefix = {"timm": "patch_embed.", "torchvision": "conv_proj."}[layout]
    return convert({k: v for k, v in state_dict.items() if k.startswith(prefix)}, source=layout, target="timm")


def _patchify_sentence(weight: Any) -> str:
    size = f"{weight.shape[-2]}x{weight.shape[-1]} patches" if weight.ndim == 4 else "patches"
    return (
        f"this is the checkpoint of a plain (patchify) ViT: it embeds {size} directly, but this model has a conv stem. "
        "Convert it with convstem.transplant, or load it into the patchify architecture it was made for."
    )


def _channels(embedding: Mapping[str, Any]) -> list[int]:
    return [tensor.shape[0] for key, tensor in embedding.items() if key.endswith("conv.weight")]
