"""The layouts of torchvision and of pycls and ClassyVision, earlier libraries with the same encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convstem.layouts.rows import IMAGENET, PLAIN_TRUNK, SEQUENCE_FIRST, USUAL_STEM, Layout, Refusal, Row

ENCODER_CAN: Mapping[str, tuple[Any, ...]] = {
    **PLAIN_TRUNK,
    **USUAL_STEM,
    "qkv_bias": (True,),
    "gated_mlp": (False,),
    "stem_norm": ("", "batchnorm2d"),
    "biased_norm": (False,),
}
"""Values that all three model classes support, for ``Layout.expresses``."""

_TORCHVISION = "encoder.layers.encoder_layer_{i}."

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
        Row("blocks.{i}.norm1.{p}", f"{_TORCHVISION}ln_1.{{p}}"),
        Row("blocks.{i}.attn.qkv.weight", f"{_TORCHVISION}self_attention.in_proj_weight"),
        Row("blocks.{i}.attn.qkv.bias", f"{_TORCHVISION}self_attention.in_proj_bias"),
        Row("blocks.{i}.attn.proj.{p}", f"{_TORCHVISION}self_attention.out_proj.{{p}}"),
        Row("blocks.{i}.norm2.{p}", f"{_TORCHVISION}ln_2.{{p}}"),
        Row("blocks.{i}.mlp.fc1.{p}", f"{_TORCHVISION}mlp.0.{{p}}"),
        Row("blocks.{i}.mlp.fc2.{p}", f"{_TORCHVISION}mlp.3.{{p}}"),
        Row("norm.{p}", "encoder.ln.{p}"),
        Row("head.{p}", "heads.head.{p}"),
    ),
    # torchvision renamed its MLP's layers in version 0.12 but still loads the old names
    spellings=(
        (f"{_TORCHVISION}mlp.linear_1.{{p}}", f"{_TORCHVISION}mlp.0.{{p}}"),
        (f"{_TORCHVISION}mlp.linear_2.{{p}}", f"{_TORCHVISION}mlp.3.{{p}}"),
    ),
    markers=("conv_proj.conv_last.weight", "conv_proj.conv_bn_relu_{i}.0.weight", f"{_TORCHVISION}ln_1.weight"),
    has=("cls_token",),
    stem=("conv_proj.conv_bn_relu_{i}.0.weight", 1),
    expresses={**ENCODER_CAN, "stem_norm": (*ENCODER_CAN["stem_norm"], "none")},
    preprocessing=IMAGENET,
)

_PYCLS = "encoder.block_{i}."

# Source: facebookresearch/pycls, pycls/models/vit.py, pycls/models/blocks.py (MultiheadAttention) and
# pycls/core/config.py (LN.EPS), since its first ViT (d74b462).
PYCLS = Layout(
    name="pycls",
    title="a pycls checkpoint",
    rows=(
        Row("cls_token", "class_token"),
        Row("pos_embed", "pos_embedding", SEQUENCE_FIRST),
        Row("patch_embed.proj.{p}", "stem.patchify.{p}"),
        Row("patch_embed.backbone.{n}.conv.{p}", "stem.cstem_last_conv.{p}"),
        Row("patch_embed.backbone.{i}.conv.weight", "stem.cstem{i}_conv.weight"),
        Row("patch_embed.backbone.{i}.bn.{s}", "stem.cstem{i}_bn.{s}"),
        Row("blocks.{i}.norm1.{p}", f"{_PYCLS}ln_1.{{p}}"),
        Row("blocks.{i}.attn.qkv.weight", f"{_PYCLS}self_attention.block.in_proj_weight"),
        Row("blocks.{i}.attn.qkv.bias", f"{_PYCLS}self_attention.block.in_proj_bias"),
        Row("blocks.{i}.attn.proj.{p}", f"{_PYCLS}self_attention.block.out_proj.{{p}}"),
        Row("blocks.{i}.norm2.{p}", f"{_PYCLS}ln_2.{{p}}"),
        Row("blocks.{i}.mlp.fc1.{p}", f"{_PYCLS}mlp_block.linear_1.{{p}}"),
        Row("blocks.{i}.mlp.fc2.{p}", f"{_PYCLS}mlp_block.linear_2.{{p}}"),
        Row("norm.{p}", "encoder.ln.{p}"),
        Row("head.{p}", "head.head_fc.{p}"),
    ),
    markers=("stem.cstem{i}_conv.weight", "stem.patchify.weight", f"{_PYCLS}ln_1.weight"),
    stem=("stem.cstem{i}_conv.weight", 1),
    # a pooled model has no class token and averages the last norm's output
    expresses={**ENCODER_CAN, "class_token": (True, False)},
    arguments={"norm_eps": 1e-5},
    preprocessing=IMAGENET,
)

_CLASSYVISION = "encoder.layers.layer_{i}."

# ``unwrap`` adds the prefix ``head.`` to the head's keys.
# Source: facebookresearch/ClassyVision, classy_vision/models/vision_transformer.py, models/classy_model.py
# (get_classy_state) and heads/vision_transformer_head.py.
CLASSYVISION = Layout(
    name="classyvision",
    title="a ClassyVision checkpoint",
    rows=(
        Row("cls_token", "class_token"),
        Row("pos_embed", "encoder.pos_embedding", SEQUENCE_FIRST),
        Row("patch_embed.proj.{p}", "conv_proj.{p}"),
        Row("patch_embed.backbone.{n}.conv.{p}", "conv_proj.conv_{n}.{p}"),
        Row("patch_embed.backbone.{i}.conv.weight", "conv_proj.conv_{i}.weight"),
        Row("patch_embed.backbone.{i}.bn.{s}", "conv_proj.bn_{i}.{s}"),
        Row("blocks.{i}.norm1.{p}", f"{_CLASSYVISION}ln_1.{{p}}"),
        Row("blocks.{i}.attn.qkv.weight", f"{_CLASSYVISION}self_attention.in_proj_weight"),
        Row("blocks.{i}.attn.qkv.bias", f"{_CLASSYVISION}self_attention.in_proj_bias"),
        Row("blocks.{i}.attn.proj.{p}", f"{_CLASSYVISION}self_attention.out_proj.{{p}}"),
        Row("blocks.{i}.norm2.{p}", f"{_CLASSYVISION}ln_2.{{p}}"),
        Row("blocks.{i}.mlp.fc1.{p}", f"{_CLASSYVISION}mlp.linear_1.{{p}}"),
        Row("blocks.{i}.mlp.fc2.{p}", f"{_CLASSYVISION}mlp.linear_2.{{p}}"),
        Row("norm.{p}", "encoder.ln.{p}"),
        Row("head.{p}", "head.layers.head.{p}"),
    ),
    spellings=(("_heads.{*}.layers.head.{p}", "head.layers.head.{p}"),),
    markers=("conv_proj.conv_{i}.weight", f"{_CLASSYVISION}ln_1.weight"),
    stem=("conv_proj.conv_{i}.weight", 0),
    refusals=(
        Refusal("head.layers.pre_logits.{p}", "its head has a hidden layer (pre_logits, then tanh), which timm's ViT "
                "does not have; without it the logits would differ"),
    ),
    expresses={**ENCODER_CAN, "class_token": (True, False)},
    preprocessing=IMAGENET,
)  # fmt: skip
