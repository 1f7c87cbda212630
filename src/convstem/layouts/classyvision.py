"""ClassyVision's layout: sequence first; ``unwrap`` puts the head's keys after ``head.``."""

from __future__ import annotations

from convstem.layouts.operations import SEQUENCE_FIRST
from convstem.layouts.rows import IMAGENET, Layout, Refusal, Row
from convstem.layouts.torchvision import ENCODER_CAN

_LAYER = "encoder.layers.layer_{i}."

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
        Row("blocks.{i}.norm1.{p}", f"{_LAYER}ln_1.{{p}}"),
        Row("blocks.{i}.attn.qkv.weight", f"{_LAYER}self_attention.in_proj_weight"),
        Row("blocks.{i}.attn.qkv.bias", f"{_LAYER}self_attention.in_proj_bias"),
        Row("blocks.{i}.attn.proj.{p}", f"{_LAYER}self_attention.out_proj.{{p}}"),
        Row("blocks.{i}.norm2.{p}", f"{_LAYER}ln_2.{{p}}"),
        Row("blocks.{i}.mlp.fc1.{p}", f"{_LAYER}mlp.linear_1.{{p}}"),
        Row("blocks.{i}.mlp.fc2.{p}", f"{_LAYER}mlp.linear_2.{{p}}"),
        Row("norm.{p}", "encoder.ln.{p}"),
        Row("head.{p}", "head.layers.head.{p}"),
    ),
    spellings=(("_heads.{*}.layers.head.{p}", "head.layers.head.{p}"),),
    markers=("conv_proj.conv_{i}.weight", f"{_LAYER}ln_1.weight"),
    stem=("conv_proj.conv_{i}.weight", 0),
    refusals=(
        Refusal("head.layers.pre_logits.{p}", "its head has a hidden layer (pre_logits, then tanh), which timm's ViT "
                "has not; without it the logits would be others"),
    ),
    expresses={**ENCODER_CAN, "class_token": (True, False)},
    preprocessing=IMAGENET,
    names="vit_{size}_patch{patch}_{img}",
)  # fmt: skip
