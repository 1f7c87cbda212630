"""torchvision's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convstem.layouts.rows import IMAGENET, PLAIN_TRUNK, Layout, Row

ENCODER_CAN: Mapping[str, tuple[Any, ...]] = {
    **PLAIN_TRUNK,
    "qkv_bias": (True,),
    "gated_mlp": (False,),
    "stem_norm": ("", "batchnorm2d"),
    "biased_norm": (False,),
}
"""Sizes that torchvision's model class can have; those of pycls and ClassyVision, its forerunners, are alike."""

_LAYER = "encoder.layers.encoder_layer_{i}."

# Source: torchvision/models/vision_transformer.py.
TORCHVISION = Layout(
    name="torchvision",
    title="a torchvision checkpoint",
    rows=(
        Row("cls_token", "class_token"),
        Row("pos_embed", "encoder.pos_embedding"),
        Row("patch_embed.proj.{p}", "conv_proj.{p}"),
        Row("patch_embed.backbone.{i}.bn.{s}", "conv_proj.conv_bn_relu_{i}.1.{s}"),
        Row("patch_embed.backbone.{n}.conv.{p}", "conv_proj.conv_last.{p}"),
        Row("patch_embed.backbone.{i}.conv.{p}", "conv_proj.conv_bn_relu_{i}.0.{p}"),
        Row("blocks.{i}.norm1.{p}", f"{_LAYER}ln_1.{{p}}"),
        Row("blocks.{i}.attn.qkv.weight", f"{_LAYER}self_attention.in_proj_weight"),
        Row("blocks.{i}.attn.qkv.bias", f"{_LAYER}self_attention.in_proj_bias"),
        Row("blocks.{i}.attn.proj.{p}", f"{_LAYER}self_attention.out_proj.{{p}}"),
        Row("blocks.{i}.norm2.{p}", f"{_LAYER}ln_2.{{p}}"),
        Row("blocks.{i}.mlp.fc1.{p}", f"{_LAYER}mlp.0.{{p}}"),
        Row("blocks.{i}.mlp.fc2.{p}", f"{_LAYER}mlp.3.{{p}}"),
        Row("norm.{p}", "encoder.ln.{p}"),
        Row("head.{p}", "heads.head.{p}"),
    ),
    # torchvision renamed its MLP in version 0.12; it still loads these
    spellings=(
        (f"{_LAYER}mlp.linear_1.{{p}}", f"{_LAYER}mlp.0.{{p}}"),
        (f"{_LAYER}mlp.linear_2.{{p}}", f"{_LAYER}mlp.3.{{p}}"),
    ),
    markers=("conv_proj.conv_last.weight", "conv_proj.conv_bn_relu_{i}.0.weight", f"{_LAYER}ln_1.weight"),
    has=("cls_token",),
    stem=("conv_proj.conv_bn_relu_{i}.0.weight", 1),
    expresses={**ENCODER_CAN, "stem_norm": (*ENCODER_CAN["stem_norm"], "none")},
    preprocessing=IMAGENET,
    names="vit_{size}_patch{patch}_{img}",
)
