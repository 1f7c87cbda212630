"""The layout of the JAX checkpoints (.npz) of the ViT and AugReg papers and of big_vision."""

from __future__ import annotations

from convstem.layouts.operations import (
    FLATTEN_HEADS,
    HEADS_TO_LINEAR,
    JOIN_HEAD_BIASES,
    JOIN_HEADS,
    KERNEL_HWIO,
    TRANSPOSE,
)
from convstem.layouts.rows import HALF, Layout, Refusal, Row

_BLOCK = "Transformer/encoderblock_{i}/"
_ATTENTION = f"{_BLOCK}MultiHeadDotProductAttention_1/"
_POOL = "MAPHead_0/"
_POOLING = f"{_POOL}MultiHeadDotProductAttention_0/"


def _norm(timm: str, other: str) -> tuple[Row, Row]:
    return Row(f"{timm}.weight", f"{other}/scale"), Row(f"{timm}.bias", f"{other}/bias")


def _linear(timm: str, other: str) -> tuple[Row, Row]:
    return Row(f"{timm}.weight", f"{other}/kernel", TRANSPOSE), Row(f"{timm}.bias", f"{other}/bias")


def _joined(timm: str, attention: str, parts: tuple[str, ...]) -> tuple[Row, Row]:
    return (
        Row(f"{timm}.weight", tuple(f"{attention}{part}/kernel" for part in parts), JOIN_HEADS),
        Row(f"{timm}.bias", tuple(f"{attention}{part}/bias" for part in parts), JOIN_HEAD_BIASES),
    )


# Source: google-research/vision_transformer, vit_jax/models_vit.py; google-research/big_vision, models/vit.py.
AUGREG = Layout(
    name="augreg",
    title="a JAX checkpoint of ViT, AugReg or big_vision",
    rows=(
        Row("cls_token", "cls"),
        Row("pos_embed", "Transformer/posembed_input/pos_embedding"),
        Row("patch_embed.proj.weight", "embedding/kernel", KERNEL_HWIO),
        Row("patch_embed.proj.bias", "embedding/bias"),
        *_norm("blocks.{i}.norm1", f"{_BLOCK}LayerNorm_0"),
        *_joined("blocks.{i}.attn.qkv", _ATTENTION, ("query", "key", "value")),
        Row("blocks.{i}.attn.proj.weight", f"{_ATTENTION}out/kernel", FLATTEN_HEADS),
        Row("blocks.{i}.attn.proj.bias", f"{_ATTENTION}out/bias"),
        *_norm("blocks.{i}.norm2", f"{_BLOCK}LayerNorm_2"),
        *_linear("blocks.{i}.mlp.fc1", f"{_BLOCK}MlpBlock_3/Dense_0"),
        *_linear("blocks.{i}.mlp.fc2", f"{_BLOCK}MlpBlock_3/Dense_1"),
        *_norm("norm", "Transformer/encoder_norm"),
        Row("attn_pool.latent", f"{_POOL}probe"),
        Row("attn_pool.q.weight", f"{_POOLING}query/kernel", HEADS_TO_LINEAR),
        Row("attn_pool.q.bias", f"{_POOLING}query/bias", JOIN_HEAD_BIASES),
        *_joined("attn_pool.kv", _POOLING, ("key", "value")),
        Row("attn_pool.proj.weight", f"{_POOLING}out/kernel", FLATTEN_HEADS),
        Row("attn_pool.proj.bias", f"{_POOLING}out/bias"),
        *_norm("attn_pool.norm", f"{_POOL}LayerNorm_0"),
        *_linear("attn_pool.mlp.fc1", f"{_POOL}MlpBlock_0/Dense_0"),
        *_linear("attn_pool.mlp.fc2", f"{_POOL}MlpBlock_0/Dense_1"),
        *_linear("head", "head"),
    ),
    # big_vision numbers the layers of a block by kind, and keeps the positions outside the encoder
    spellings=(
        ("pos_embedding", "Transformer/posembed_input/pos_embedding"),
        (f"{_BLOCK}MultiHeadDotProductAttention_0/{{*}}", f"{_ATTENTION}{{*}}"),
        (f"{_BLOCK}LayerNorm_1/{{w}}", f"{_BLOCK}LayerNorm_2/{{w}}"),
        (f"{_BLOCK}MlpBlock_0/{{*}}", f"{_BLOCK}MlpBlock_3/{{*}}"),
    ),
    markers=("embedding/kernel", f"{_BLOCK}LayerNorm_0/scale"),
    refusals=(
        Refusal("pre_logits/{w}", "its head has a hidden layer (pre_logits, then tanh), which timm's ViT has not; "
                "without it the logits would be others"),
    ),
    heads=(f"{_ATTENTION}query/kernel", 1),
    preprocessing=HALF,
    names="vit_{size}_patch{patch}_{img}",
)  # fmt: skip
