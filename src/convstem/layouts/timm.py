"""timm's layout: every key a ViT of timm or of ours can have, with its shape. The others are written against it."""

from __future__ import annotations

from dataclasses import dataclass

from convstem.layouts.rows import Drop, Layout, Row


@dataclass(frozen=True)
class Key:
    """Keys of timm's, the shape of their tensors in the symbols of ``shapes.symbols``, and when a model has them.

    ``when`` names a field of ``Sizes`` that must hold; without it every model has the key.
    """

    keys: str
    shape: str
    when: str = ""


# Source: timm/models/vision_transformer.py (VisionTransformer, Block, AttentionPoolLatent).
TRUNK = (
    Key("cls_token", "1 1 d", "class_token"),
    Key("reg_token", "1 reg d", "reg_tokens"),
    Key("pos_embed", "1 tokens d"),
    Key("norm_pre.{p}", "d", "pre_norm"),
    Key("blocks.{i}.norm1.{p}", "d"),
    Key("blocks.{i}.attn.qkv.weight", "3d d"),
    Key("blocks.{i}.attn.qkv.bias", "3d", "qkv_bias"),
    Key("blocks.{i}.attn.q_norm.{p}", "head_dim", "qk_norm"),
    Key("blocks.{i}.attn.k_norm.{p}", "head_dim", "qk_norm"),
    Key("blocks.{i}.attn.proj.weight", "d d"),
    Key("blocks.{i}.attn.proj.bias", "d"),
    Key("blocks.{i}.ls1.gamma", "d", "layer_scale"),
    Key("blocks.{i}.norm2.{p}", "d"),
    Key("blocks.{i}.mlp.fc1.weight", "mlp d"),
    Key("blocks.{i}.mlp.fc1.bias", "mlp"),
    Key("blocks.{i}.mlp.fc2.weight", "d mlp_out"),
    Key("blocks.{i}.mlp.fc2.bias", "d"),
    Key("blocks.{i}.ls2.gamma", "d", "layer_scale"),
    Key("norm.{p}", "d", "norm"),
    Key("attn_pool.latent", "1 1 d", "map_pool"),
    Key("attn_pool.q.weight", "d d", "map_pool"),
    Key("attn_pool.q.bias", "d", "map_pool"),
    Key("attn_pool.kv.weight", "2d d", "map_pool"),
    Key("attn_pool.kv.bias", "2d", "map_pool"),
    Key("attn_pool.proj.weight", "d d", "map_pool"),
    Key("attn_pool.proj.bias", "d", "map_pool"),
    Key("attn_pool.norm.{p}", "d", "map_pool"),
    Key("attn_pool.mlp.fc1.weight", "mlp d", "map_pool"),
    Key("attn_pool.mlp.fc1.bias", "mlp", "map_pool"),
    Key("attn_pool.mlp.fc2.weight", "d mlp_out", "map_pool"),
    Key("attn_pool.mlp.fc2.bias", "d", "map_pool"),
    Key("fc_norm.{p}", "d", "fc_norm"),
    Key("head.weight", "classes d", "num_classes"),
    Key("head.bias", "classes", "head_bias"),
)

PATCHIFY = (
    Key("patch_embed.proj.weight", "d in_chans patch patch", "patch_size"),
    Key("patch_embed.proj.bias", "d", "patch_bias"),
)

STEM = (
    Key("patch_embed.backbone.{i}.bn.{s}", "out", "stem"),
    Key("patch_embed.backbone.{n}.conv.weight", "d last_in 1 1", "stem"),
    Key("patch_embed.backbone.{n}.conv.bias", "d", "stem"),
    Key("patch_embed.backbone.{i}.conv.weight", "out in kernel kernel", "stem"),
    Key("patch_embed.backbone.{i}.conv.bias", "out", "stem_bias"),
)

TRUNK_ROWS = tuple(Row(key.keys, key.keys) for key in TRUNK)

MASK_TOKEN = Drop("mask_token", "only masked-image training uses the mask token")

TIMM = Layout(
    name="timm",
    title="a checkpoint in timm's layout",
    rows=(*TRUNK_ROWS, *(Row(key.keys, key.keys) for key in (*PATCHIFY, *STEM))),
    markers=("patch_embed.backbone.{i}.conv.weight", "patch_embed.proj.weight"),
    stem=("patch_embed.backbone.{i}.conv.weight", 0),
    drops=(MASK_TOKEN,),
    names="vit_{size}_patch{patch}_{img}",
)
