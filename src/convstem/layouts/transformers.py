"""Layouts of transformers (ViT, DINOv2, the image towers of CLIP and SigLIP), OpenAI's CLIP and open_clip.

Rows have the keys of version 5's models in memory. ``spellings`` have those of files and of version 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convstem.errors import ConversionError
from convstem.layouts.rows import (
    ABSORB_POSITION,
    ADD_AXIS,
    ADD_TWO_AXES,
    ADD_ZERO_BIAS,
    HALF,
    IMAGENET,
    JOIN_QKV,
    JOIN_TWO,
    PLAIN_TRUNK,
    SPLIT_Q_KV,
    Drop,
    Layout,
    Naming,
    Operation,
    Refusal,
    Row,
)

if TYPE_CHECKING:
    from torch import Tensor


_MASK = Drop("embeddings.mask_token", "only masked-image training uses the mask token")
_POOLER = Drop("pooler.dense.{p}", "the pooler is a layer of pre-training; the class token after the last norm is kept")
_IDS = Drop("embeddings.position_ids", "counts the positions")


def _qkv(attention: str) -> Row:
    return Row("blocks.{i}.attn.qkv.{p}", tuple(f"{attention}.{part}_proj.{{p}}" for part in "qkv"), JOIN_QKV)


_EMBEDDINGS = (
    Row("cls_token", "embeddings.cls_token"),
    Row("pos_embed", "embeddings.position_embeddings"),
    Row("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
)

# Source: transformers/models/vit/modeling_vit.py, transformers/conversion_mapping.py (version 5).
VIT = Layout(
    name="transformers_vit",
    title="a ViT checkpoint of transformers",
    rows=(
        *_EMBEDDINGS,
        Row("blocks.{i}.norm1.{p}", "layers.{i}.layernorm_before.{p}"),
        _qkv("layers.{i}.attention"),
        Row("blocks.{i}.attn.proj.{p}", "layers.{i}.attention.o_proj.{p}"),
        Row("blocks.{i}.norm2.{p}", "layers.{i}.layernorm_after.{p}"),
        Row("blocks.{i}.mlp.fc1.{p}", "layers.{i}.mlp.fc1.{p}"),
        Row("blocks.{i}.mlp.fc2.{p}", "layers.{i}.mlp.fc2.{p}"),
        Row("norm.{p}", "layernorm.{p}"),
        Row("head.{p}", "classifier.{p}"),
    ),
    spellings=(
        ("encoder.layer.{i}.layernorm_{w}.{p}", "layers.{i}.layernorm_{w}.{p}"),
        ("encoder.layer.{i}.attention.attention.query.{p}", "layers.{i}.attention.q_proj.{p}"),
        ("encoder.layer.{i}.attention.attention.key.{p}", "layers.{i}.attention.k_proj.{p}"),
        ("encoder.layer.{i}.attention.attention.value.{p}", "layers.{i}.attention.v_proj.{p}"),
        ("encoder.layer.{i}.attention.output.dense.{p}", "layers.{i}.attention.o_proj.{p}"),
        ("encoder.layer.{i}.intermediate.dense.{p}", "layers.{i}.mlp.fc1.{p}"),
        ("encoder.layer.{i}.output.dense.{p}", "layers.{i}.mlp.fc2.{p}"),
    ),
    root=("vit.", "classifier.{p}"),
    has=("cls_token",),
    markers=("layers.{i}.layernorm_before.{p}", "encoder.layer.{i}.layernorm_before.{p}"),
    drops=(_MASK, _POOLER),
    expresses={
        **PLAIN_TRUNK,
        "gated_mlp": (False,),
        "stem_norm": ("",),
    },
    arguments={"norm_eps": 1e-12},
    preprocessing=HALF,
    fed_differently=True,
)

_DINOV2_ROWS = (
    Row("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    Row("blocks.{i}.norm1.{p}", "encoder.layer.{i}.norm1.{p}"),
    _qkv("encoder.layer.{i}.attention"),
    Row("blocks.{i}.attn.proj.{p}", "encoder.layer.{i}.attention.o_proj.{p}"),
    Row("blocks.{i}.ls1.gamma", "encoder.layer.{i}.layer_scale1.lambda1"),
    Row("blocks.{i}.norm2.{p}", "encoder.layer.{i}.norm2.{p}"),
    Row("blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.mlp.fc1.{p}"),
    Row("blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.mlp.fc2.{p}"),
    Row(
        "blocks.{i}.mlp.fc1.{p}", ("encoder.layer.{i}.mlp.gate_proj.{p}", "encoder.layer.{i}.mlp.up_proj.{p}"), JOIN_TWO
    ),
    Row("blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.mlp.weights_in.{p}"),
    Row("blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.mlp.down_proj.{p}"),
    Row("blocks.{i}.ls2.gamma", "encoder.layer.{i}.layer_scale2.lambda1"),
    Row("norm.{p}", "layernorm.{p}"),
)
_DINOV2_SPELLINGS = (
    *((f"encoder.layer.{{i}}.attention.attention.{name}.{{p}}", f"encoder.layer.{{i}}.attention.{name[0]}_proj.{{p}}")
      for name in ("query", "key", "value")),
    ("encoder.layer.{i}.attention.output.dense.{p}", "encoder.layer.{i}.attention.o_proj.{p}"),
    ("encoder.layer.{i}.mlp.weights_out.{p}", "encoder.layer.{i}.mlp.down_proj.{p}"),
)  # fmt: skip
_DINOV2_REFUSALS = (
    Refusal("classifier.{p}", "its classifier reads the class token and the mean of the patches side by side, which "
            "timm's ViT does not: remove the classifier's keys to convert the rest"),
)  # fmt: skip
_DINOV2_IS = {"rotary": (False,), "layer_scale": (True,), "qk_norm": (False,), "pre_norm": (False,),
              "fc_norm": (False,), "map_pool": (False,), "gated_mlp": (False,), "stem_norm": ("",),
              "class_token": (True,), "num_classes": (0,)}  # fmt: skip

_GIANT = "vit_giant_patch14_dinov2"  # has a gated MLP, which timm has no argument for
_GATED_TRUNKS = {(1536, 40, 24): "giant"}

DINOV2_REGISTERS_NAMING = Naming(
    "vit_{size}_patch{patch}_reg4_dinov2",
    usual={"layer_scale": True, "reg_tokens": 4, "class_position": False},
    gated_trunks=_GATED_TRUNKS,
    base="vit_base_patch14_reg4_dinov2",
    gated_base=_GIANT,
)

# Source: transformers/models/dinov2/modeling_dinov2.py.
DINOV2 = Layout(
    name="transformers_dinov2",
    title="a DINOv2 checkpoint of transformers",
    rows=(*_EMBEDDINGS[:2], *_DINOV2_ROWS),
    spellings=_DINOV2_SPELLINGS,
    markers=("encoder.layer.{i}.layer_scale1.lambda1",),
    has=("cls_token",),
    unless=("embeddings.register_tokens",),
    drops=(_MASK,),
    refusals=_DINOV2_REFUSALS,
    expresses={**_DINOV2_IS, "class_position": (True,), "reg_tokens": (0,)},
    preprocessing=IMAGENET,
    naming=Naming(
        "vit_{size}_patch{patch}_dinov2",
        usual={"layer_scale": True},
        gated_trunks=_GATED_TRUNKS,
        base="vit_base_patch14_dinov2",
        gated_base=_GIANT,
    ),
)

# Here the class token has a position; in timm it has none, since registers come between it and the patches.
# Source: transformers/models/dinov2_with_registers/modeling_dinov2_with_registers.py.
DINOV2_REGISTERS = Layout(
    name="transformers_dinov2_registers",
    title="a checkpoint of DINOv2 with registers of transformers",
    rows=(
        Row("reg_token", "embeddings.register_tokens"),
        Row(("cls_token", "pos_embed"), ("embeddings.cls_token", "embeddings.position_embeddings"), ABSORB_POSITION),
        *_DINOV2_ROWS,
    ),
    spellings=_DINOV2_SPELLINGS,
    markers=("embeddings.register_tokens",),
    has=("cls_token", "reg_token"),
    drops=(_MASK,),
    refusals=_DINOV2_REFUSALS,
    preprocessing=IMAGENET,
    naming=DINOV2_REGISTERS_NAMING,
)

_TOWER = (
    Row("pos_embed", "embeddings.position_embedding.weight", ADD_AXIS),
    Row("patch_embed.proj.{p}", "embeddings.patch_embedding.{p}"),
    Row("blocks.{i}.norm1.{p}", "encoder.layers.{i}.layer_norm1.{p}"),
    _qkv("encoder.layers.{i}.self_attn"),
    Row("blocks.{i}.attn.proj.{p}", "encoder.layers.{i}.self_attn.out_proj.{p}"),
    Row("blocks.{i}.norm2.{p}", "encoder.layers.{i}.layer_norm2.{p}"),
    Row("blocks.{i}.mlp.fc1.{p}", "encoder.layers.{i}.mlp.fc1.{p}"),
    Row("blocks.{i}.mlp.fc2.{p}", "encoder.layers.{i}.mlp.fc2.{p}"),
    Row("norm.{p}", "post_layernorm.{p}"),
)
TOWER_IS = {"rotary": (False,), "reg_tokens": (0,), "layer_scale": (False,), "qk_norm": (False,),
             "fc_norm": (False,), "gated_mlp": (False,), "stem_norm": ("",), "class_position": (True,)}  # fmt: skip
_MEAN_CLASSIFIER = (
    Refusal("classifier.{p}", "its classifier reads the mean of the patches, which this model's pooling does not give: "
            "remove the classifier's keys to convert the rest"),
)  # fmt: skip

# Source: transformers/models/clip/modeling_clip.py.
CLIP = Layout(
    name="transformers_clip",
    title="a CLIP image tower's checkpoint of transformers",
    rows=(
        Row("cls_token", "embeddings.class_embedding", ADD_TWO_AXES),
        *_TOWER,
        Row("norm_pre.{p}", "pre_layrnorm.{p}"),
        Row(("head.weight", "head.bias"), "visual_projection.weight", ADD_ZERO_BIAS),
    ),
    root=("vision_model.", "visual_projection.weight"),
    markers=("pre_layrnorm.{p}",),
    has=("cls_token",),
    drops=(_IDS,),
    refusals=_MEAN_CLASSIFIER,
    expresses={**TOWER_IS, "class_token": (True,), "pre_norm": (True,), "map_pool": (False,)},
    arguments={"norm_eps": 1e-5, "act_layer": "quick_gelu"},
    assumed={
        "act_layer": "its activation is assumed to be QuickGELU, as in OpenAI's CLIP; for GELU, as in LAION's, pass "
        "act_layer='gelu' (--act-layer gelu on the command line)"
    },
    preprocessing={"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)},
    naming=Naming(
        "vit_{size}_patch{patch}_clip{act}_{img}", usual={"pre_norm": True}, base="vit_base_patch16_clip{act}_224"
    ),
)

# Source: transformers/models/siglip/modeling_siglip.py.
SIGLIP = Layout(
    name="transformers_siglip",
    title="a SigLIP image tower's checkpoint of transformers",
    rows=(
        *_TOWER,
        Row("attn_pool.latent", "head.probe"),
        Row(("attn_pool.q.weight", "attn_pool.kv.weight"), "head.attention.in_proj_weight", SPLIT_Q_KV),
        Row(("attn_pool.q.bias", "attn_pool.kv.bias"), "head.attention.in_proj_bias", SPLIT_Q_KV),
        Row("attn_pool.proj.{p}", "head.attention.out_proj.{p}"),
        Row("attn_pool.norm.{p}", "head.layernorm.{p}"),
        Row("attn_pool.mlp.fc1.{p}", "head.mlp.fc1.{p}"),
        Row("attn_pool.mlp.fc2.{p}", "head.mlp.fc2.{p}"),
    ),
    markers=("embeddings.patch_embedding.bias", "head.probe"),
    drops=(_IDS,),
    refusals=_MEAN_CLASSIFIER,
    expresses={**TOWER_IS, "class_token": (False,), "pre_norm": (False,), "map_pool": (True,), "num_classes": (0,)},
    arguments={"act_layer": "gelu_tanh"},
    preprocessing=HALF,
    naming=Naming(
        "vit_{size}_patch{patch}_siglip_{img}",
        usual={"class_token": False, "map_pool": True},
        base="vit_base_patch16_siglip_224",
    ),
)

TRANSFORMERS = (CLIP, DINOV2, DINOV2_REGISTERS, SIGLIP, VIT)

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}


def arguments_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts in a transformers ``config.json`` that shapes do not show, by timm's argument."""
    own = {**config, **config.get("vision_config", {})}
    arguments = {
        "num_heads": own.get("num_attention_heads"),
        "norm_eps": own.get("layer_norm_eps"),
        "act_layer": _ACTIVATIONS.get(own.get("hidden_act", "")),
    }
    images = IMAGENET if config.get("model_type") in _OF_IMAGENET else {}
    return {**images, **{name: value for name, value in arguments.items() if value is not None}}


_OF_IMAGENET = ("vit_mae", "vit_msn")
"""Model types with ViT's layout but ImageNet's mean and std."""

_MODEL_TYPES = {
    "vit_mae": VIT,
    "vit_msn": VIT,
    "vit": VIT,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2_REGISTERS,
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
}


def layout_of_config(config: Mapping[str, Any]) -> str | None:
    """Return the layout for a transformers ``config.json``, or None."""
    layout = _MODEL_TYPES.get(str(config.get("model_type")))
    return layout.name if layout else None


def _as_linear(tensors: Sequence[Tensor]) -> list[Tensor]:
    (matrix,) = tensors
    return [matrix.permute(1, 0), matrix.new_zeros(matrix.shape[1])]


def _as_matrix(tensors: Sequence[Tensor]) -> list[Tensor]:
    weight, bias = tensors
    if bias.any():
        raise ConversionError("the bias is not zero, and the other layout has none")
    return [weight.permute(1, 0)]


_PROJECTION = Operation("transpose and add a zero bias", _as_linear, "drop a zero bias and transpose", _as_matrix)
"""A matrix [in, out] <-> a weight [out, in] and a zero bias [out]."""

_BLOCK = "transformer.resblocks.{i}."

# Source: openai/CLIP, clip/model.py (VisionTransformer); mlfoundations/open_clip, src/open_clip/transformer.py.
OPEN_CLIP = Layout(
    name="open_clip",
    title="a CLIP image tower's checkpoint of open_clip or OpenAI",
    rows=(
        Row("cls_token", "class_embedding", ADD_TWO_AXES),
        Row("pos_embed", "positional_embedding", ADD_AXIS),
        Row("patch_embed.proj.{p}", "conv1.{p}"),
        Row("norm_pre.{p}", "ln_pre.{p}"),
        Row("blocks.{i}.norm1.{p}", f"{_BLOCK}ln_1.{{p}}"),
        Row("blocks.{i}.attn.qkv.weight", f"{_BLOCK}attn.in_proj_weight"),
        Row("blocks.{i}.attn.qkv.bias", f"{_BLOCK}attn.in_proj_bias"),
        Row("blocks.{i}.attn.proj.{p}", f"{_BLOCK}attn.out_proj.{{p}}"),
        Row("blocks.{i}.norm2.{p}", f"{_BLOCK}ln_2.{{p}}"),
        Row("blocks.{i}.mlp.fc1.{p}", f"{_BLOCK}mlp.c_fc.{{p}}"),
        Row("blocks.{i}.mlp.fc2.{p}", f"{_BLOCK}mlp.c_proj.{{p}}"),
        Row("norm.{p}", "ln_post.{p}"),
        Row(("head.weight", "head.bias"), "proj", _PROJECTION),
    ),
    markers=("ln_pre.{p}",),
    has=("cls_token",),
    expresses={**TOWER_IS, "class_token": (True,), "pre_norm": (True,), "map_pool": (False,), "qkv_bias": (True,)},
    arguments={"norm_eps": 1e-5, "act_layer": "gelu"},
    assumed={
        "act_layer": "its activation is assumed to be GELU, as in LAION's CLIP; for QuickGELU, as in OpenAI's, pass "
        "act_layer='quick_gelu' (--act-layer quick_gelu on the command line)"
    },
    preprocessing=CLIP.preprocessing,
    naming=CLIP.naming,
)
