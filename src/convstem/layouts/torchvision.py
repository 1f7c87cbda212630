"""torchvision's layout as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from convstem.layouts.engine import Row, Table

_STEM_NORM = Row("patch_embed.backbone.{i}.bn.{p}", "conv_proj.conv_bn_relu_{i}.1.{p}")


# Source: torchvision/models/vision_transformer.py and timm/models/vision_transformer.py.
TORCHVISION = Table(
    rows=(
        Row("cls_token", "class_token"),
        Row("pos_embed", "encoder.pos_embedding"),
        Row("patch_embed.proj.{p}", "conv_proj.{p}"),  # patchify ViTs, which transplant reads
        _STEM_NORM,
        Row("patch_embed.backbone.{n}.conv.{p}", "conv_proj.conv_last.{p}"),  # before the layers: same shape of key
        Row("patch_embed.backbone.{i}.conv.{p}", "conv_proj.conv_bn_relu_{i}.0.{p}"),
        Row("blocks.{i}.norm1.{p}", "encoder.layers.encoder_layer_{i}.ln_1.{p}"),
        Row("blocks.{i}.attn.qkv.weight", "encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight"),
        Row("blocks.{i}.attn.qkv.bias", "encoder.layers.encoder_layer_{i}.self_attention.in_proj_bias"),
        Row("blocks.{i}.attn.proj.{p}", "encoder.layers.encoder_layer_{i}.self_attention.out_proj.{p}"),
        Row("blocks.{i}.norm2.{p}", "encoder.layers.encoder_layer_{i}.ln_2.{p}"),
        Row("blocks.{i}.mlp.fc1.{p}", "encoder.layers.encoder_layer_{i}.mlp.0.{p}"),
        Row("blocks.{i}.mlp.fc2.{p}", "encoder.layers.encoder_layer_{i}.mlp.3.{p}"),
        Row("norm.{p}", "encoder.ln.{p}"),
        Row("head.{p}", "heads.head.{p}"),
    ),
    counter=_STEM_NORM,
)
