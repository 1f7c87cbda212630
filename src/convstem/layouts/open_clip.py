"""The image towers of OpenAI's CLIP and of open_clip, whose checkpoints have them below ``visual.``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from convstem.errors import ConversionError
from convstem.layouts.rows import ADD_AXIS, ADD_TWO_AXES, Layout, Operation, Row
from convstem.layouts.transformers import CLIP, TOWER_IS

if TYPE_CHECKING:
    from torch import Tensor


def _as_linear(tensors: Sequence[Tensor]) -> list[Tensor]:
    (matrix,) = tensors
    return [matrix.permute(1, 0), matrix.new_zeros(matrix.shape[1])]


def _as_matrix(tensors: Sequence[Tensor]) -> list[Tensor]:
    weight, bias = tensors
    if bias.any():
        raise ConversionError("the bias is not zero, and the other layout has none")
    return [weight.permute(1, 0)]


_PROJECTION = Operation("transpose and add a zero bias", _as_linear, "drop a zero bias and transpose", _as_matrix)
"""A matrix [in, out] <-> the weight [out, in] and a bias [out]."""

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
        "act_layer": "its activation is assumed to be GELU, as in LAION's CLIP; OpenAI's has QuickGELU: "
        "act_layer='quick_gelu' (--act-layer quick_gelu on the command line) says so"
    },
    preprocessing=CLIP.preprocessing,
    naming=CLIP.naming,
)
