"""pycls's layout: sequence first, blocks by name, its own LayerNorm epsilon."""

from __future__ import annotations

from convstem.layouts.operations import SEQUENCE_FIRST
from convstem.layouts.rows import IMAGENET, Layout, Row
from convstem.layouts.torchvision import ENCODER_CAN

_BLOCK = "encoder.block_{i}."

# Source: facebookresearch/pycls, pycls/models/vit.py and pycls/core/config.py (LN.EPS).
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
        Row("blocks.{i}.norm1.{p}", f"{_BLOCK}ln_1.{{p}}"),
        Row("blocks.{i}.attn.qkv.weight", f"{_BLOCK}self_attention.in_proj_weight"),
        Row("blocks.{i}.attn.qkv.bias", f"{_BLOCK}self_attention.in_proj_bias"),
        Row("blocks.{i}.attn.proj.{p}", f"{_BLOCK}self_attention.out_proj.{{p}}"),
        Row("blocks.{i}.norm2.{p}", f"{_BLOCK}ln_2.{{p}}"),
        Row("blocks.{i}.mlp.fc1.{p}", f"{_BLOCK}mlp_block.linear_1.{{p}}"),
        Row("blocks.{i}.mlp.fc2.{p}", f"{_BLOCK}mlp_block.linear_2.{{p}}"),
        Row("norm.{p}", "encoder.ln.{p}"),
        Row("head.{p}", "head.head_fc.{p}"),
    ),
    markers=("stem.cstem{i}_conv.weight", "stem.patchify.weight", f"{_BLOCK}ln_1.weight"),
    stem=("stem.cstem{i}_conv.weight", 1),
    # a pooled model has no class token, and averages what the last norm gives
    expresses={**ENCODER_CAN, "class_token": (True, False)},
    facts={"norm_eps": 1e-5},
    preprocessing=IMAGENET,
    names="vit_{size}_patch{patch}_{img}",
)
