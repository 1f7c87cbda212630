"""Recognises a state dict's layout by keys unique to it, and names checkpoints that are no plain ViT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from convstem.errors import ConversionError
from convstem.layouts.research import AUGREG, DINOV2_REGISTERS, EDGECRAFTER, MOCO_V3, ROBUSTBENCH
from convstem.layouts.rows import Layout, search
from convstem.layouts.timm import TIMM
from convstem.layouts.torchvision import CLASSYVISION, PYCLS, TORCHVISION
from convstem.layouts.transformers import OPEN_CLIP, TRANSFORMERS

_ALL = (
    AUGREG,
    CLASSYVISION,
    DINOV2_REGISTERS,
    EDGECRAFTER,
    MOCO_V3,
    OPEN_CLIP,
    PYCLS,
    ROBUSTBENCH,
    TIMM,
    TORCHVISION,
    *TRANSFORMERS,
)

LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in _ALL}
"""Every layout by name."""

_BY_NAME = (
    "timm reads it by its own name: timm.create_model(NAME + '_convstem', pretrained=True, "
    "pretrained_cfg_overlay={'file': FILE}) gives it a conv stem, for example as vit_small_patch16_dinov3_convstem"
)
_DINOV3 = f"a DINOv3 checkpoint: its blocks are not a plain ViT's; {_BY_NAME}"

FOREIGN = (
    ("patch_embed.proj.0.weight", "layers.{i}.blocks.{w}.attn.relative_position_bias_table",
     "a CTransPath checkpoint: its stem is convolutional, but its trunk is a Swin Transformer, not a ViT"),
    ("", "layers.{i}.blocks.{w}.attn.relative_position_bias_table", "a Swin Transformer's checkpoint, not a ViT's"),
    ("", "block1.{i}.attn.{*}", "a PVT's checkpoint, not a ViT's"),
    ("patch_embed.proj.weight", "stages.{i}.blocks.{w}.attn.kv.weight", "a PVT's checkpoint, not a ViT's"),
    ("", "blocks.{i}.mlp_tokens.fc1.weight", "an MLP-Mixer's checkpoint, not a ViT's"),
    ("", "stages.{i}.{*}", "the checkpoint of a ConvNeXt or another staged network, not a ViT's"),
    ("", "tokenizer.conv_layers.{i}.{w}.weight",
     "a Compact Transformer's checkpoint (CCT, CVT or ViT-Lite): its blocks normalise the residual itself, its stem "
     "pools by maximum, and no model in timm or convstem does that"),
    ("", "layer4.{*}", "a ResNet's checkpoint, not a ViT's"),
    ("", "blocks.{i}.attn.relative_position_bias_table", "a BEiT's checkpoint: its attention has relative positions"),
    ("", "storage_tokens", _DINOV3), ("", "blocks.{i}.attn.qkv.bias_mask", _DINOV3),
    ("", "blocks.{i}.gamma_1", "a timm checkpoint with gamma_1 in its blocks, as in DINOv3, EVA or BEiT, but not in a "
     f"plain ViT; {_BY_NAME}"),
    ("", "blocks.{i}.attn.q_proj.weight", "an EVA or DINOv3 checkpoint: its blocks are not a plain ViT's"),
    ("", "blocks.{i}.mlp.w1.{*}", "an EVA or DINOv3 checkpoint: its blocks are not a plain ViT's"),
)  # fmt: skip
"""(First key or empty, second key, what a state dict with both is)."""


@dataclass(frozen=True)
class Recognised:
    """A state dict's layout, or what else it is."""

    layout: Layout | None = None
    why: str = ""
    """The evidence."""
    foreign: str = ""
    """The other kind of checkpoint, if known."""


def recognise(keys: Iterable[str]) -> Recognised:
    """Return the layout that one of these keys is unique to.

    Raises:
        ConversionError: keys of two layouts.
    """
    text = "\n".join(keys)
    for first, second, what in FOREIGN:
        if search(second, text) and (not first or search(first, text)):
            return Recognised(foreign=what)
    found = {layout.name: key for layout in LAYOUTS.values() if (key := _marker(layout, text))}
    if len(found) > 1:
        both = ", ".join(f"{LAYOUTS[name].title} ({key})" for name, key in sorted(found.items()))
        raise ConversionError(f"two layouts are mixed in this state dict: {both}")
    for name, key in found.items():
        return Recognised(LAYOUTS[name], f"only {LAYOUTS[name].title} has the key {key}")
    return Recognised()


def require_layout(keys: Iterable[str]) -> Recognised:
    """Return what ``recognise`` finds.

    Raises:
        ConversionError: convstem does not read this layout.
    """
    keys = list(keys)
    found = recognise(keys)
    if found.layout is None:
        what = found.foreign or "not a ViT checkpoint that convstem knows"
        raise ConversionError(
            f"this is {what}. convstem reads {', '.join(sorted(LAYOUTS))}; the first keys are {', '.join(keys[:3])}"
        )
    return found


def _marker(layout: Layout, text: str) -> str:
    if any(search(keys, text) for keys in layout.unless):
        return ""
    return next((key for marker in layout.markers if (key := search(marker, text))), "")
