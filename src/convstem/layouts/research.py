"""Layouts of research code: MoCo v3 and revisiting-at (timm's trunk, another stem), DINOv2, JAX papers, ECViT.

ECViT is read alone or inside EdgeCrafter's detectors, segmenters and pose models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from convstem.errors import ConversionError
from convstem.layouts.rows import (
    ABSORB_POSITION,
    FLATTEN_HEADS,
    HALF,
    HEADS_TO_LINEAR,
    IMAGENET,
    JOIN_HEAD_BIASES,
    JOIN_HEADS,
    KERNEL_HWIO,
    PLAIN_TRUNK,
    TRANSPOSE,
    USUAL_STEM,
    Drop,
    Layout,
    Operation,
    Refusal,
    Row,
)
from convstem.layouts.timm import PATCHIFY_ROWS, TIMM, TRUNK_ROWS
from convstem.layouts.transformers import DINOV2_REGISTERS_NAMING

if TYPE_CHECKING:
    from torch import Tensor


_MOCO_V3 = "patch_embed.proj."

MOCO_V3_HEADS = 12
"""Attention heads at every width, even the small one."""

# timm's layout, with the stem in one ``Sequential`` and a projector instead of the head.
# Source: facebookresearch/moco-v3, vits.py (ConvStem, VisionTransformerMoCo) and moco/builder.py (MoCo_ViT).
MOCO_V3 = Layout(
    name="moco_v3",
    title="a MoCo v3 checkpoint",
    rows=(
        *TRUNK_ROWS,
        *PATCHIFY_ROWS,
        Row("patch_embed.backbone.{n}.conv.{p}", f"{_MOCO_V3}{{3n}}.{{p}}"),
        Row("patch_embed.backbone.{i}.conv.weight", f"{_MOCO_V3}{{3i}}.weight"),
        Row("patch_embed.backbone.{i}.bn.{s}", f"{_MOCO_V3}{{3i+1}}.{{s}}"),
    ),
    markers=(f"{_MOCO_V3}{{3i}}.weight",),
    has=("cls_token",),
    stem=(f"{_MOCO_V3}{{3i}}.weight", 0),
    drops=(Drop("head.{i}.{*}", "the projector is only for pre-training"),),
    expresses={
        **PLAIN_TRUNK,
        **USUAL_STEM,
        "stem_norm": ("", "batchnorm2d"),
        "biased_norm": (False,),
    },
    arguments={"num_heads": MOCO_V3_HEADS},
    stem_stride=2,
    preprocessing=IMAGENET,
)

_CLOSE = 2e-3  # half precision rounds values up to 1 by at most 5e-4


def is_moco_sincos(pos_embed: Tensor) -> bool:
    """Return whether a position embedding is MoCo v3's two-dimensional sine-cosine table.

    Args:
        pos_embed: [1, 1 + side * side, width], class token first.

    Source: facebookresearch/moco-v3, vits.py (build_2d_sincos_position_embedding).
    """
    import torch

    _, tokens, width = pos_embed.shape
    side = round((tokens - 1) ** 0.5)
    if pos_embed.is_meta or pos_embed.is_complex() or side * side != tokens - 1 or width % 4:
        return False
    places, steps = (torch.arange(n, dtype=torch.float32, device="cpu") for n in (side, width // 4))
    angles = torch.outer(places, 10000.0 ** (-steps / (width // 4)))
    column, row = angles.repeat_interleave(side, 0), angles.repeat(side, 1)  # tokens run column by column
    table = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], 1)
    expected = torch.cat([table.new_zeros(1, width), table])
    return bool((pos_embed[0].detach().float().cpu() - expected).abs().max() < _CLOSE)


# DINOv2's own files of models with registers: timm's layout, except that the class token has a position. In timm it has
# none, since registers come between it and the patches.
# Source: facebookresearch/dinov2, dinov2/models/vision_transformer.py (DinoVisionTransformer).
DINOV2_REGISTERS = Layout(
    name="dinov2_registers",
    title="a checkpoint of DINOv2 with registers",
    rows=(
        Row("reg_token", "register_tokens"),
        Row(("cls_token", "pos_embed"), ("cls_token", "pos_embed"), ABSORB_POSITION),
        *(row for row in TRUNK_ROWS if str(row.timm).startswith(("blocks.", "norm."))),
        *PATCHIFY_ROWS,
    ),
    spellings=TIMM.spellings,
    markers=("register_tokens",),
    has=("cls_token", "reg_token"),
    drops=TIMM.drops,
    preprocessing=IMAGENET,
    naming=DINOV2_REGISTERS_NAMING,
)

_ROBUSTBENCH = "patch_embed.proj.stem."

# Singh et al. 2023 and RobustBench's zoo: timm's layout, with the stem inside ``proj``.
# Source: nmndeep/revisiting-at, utils_architecture.py (ConvBlock, ConvBlock2); RobustBench/robustbench,
# robustbench/model_zoo/architectures/convstem_models.py.
ROBUSTBENCH = Layout(
    name="robustbench",
    title="a ConvStem checkpoint of revisiting-at or RobustBench",
    rows=(
        *TRUNK_ROWS,
        Row("patch_embed.backbone.{n}.conv.{p}", f"{_ROBUSTBENCH}{{3n}}.{{p}}"),
        Row("patch_embed.backbone.{i}.conv.{p}", f"{_ROBUSTBENCH}{{3i}}.{{p}}"),
        Row("patch_embed.backbone.{i}.bn.{p}", f"{_ROBUSTBENCH}{{3i+1}}.{{p}}"),
    ),
    markers=(f"{_ROBUSTBENCH}{{3i}}.weight",),
    has=("cls_token",),
    stem=(f"{_ROBUSTBENCH}{{3i}}.weight", 0),
    expresses={"rotary": (False,), **USUAL_STEM, "stem_norm": ("layernorm2d",), "stem_bias": (True,)},
    stem_stride=2,
    preprocessing={**IMAGENET, "crop_pct": 0.875, "interpolation": "bicubic"},
)

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


# The JAX checkpoints (.npz) of the ViT and AugReg papers and of big_vision.
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
    # big_vision numbers a block's layers per kind and keeps the position embedding outside the encoder
    spellings=(
        ("pos_embedding", "Transformer/posembed_input/pos_embedding"),
        (f"{_BLOCK}MultiHeadDotProductAttention_0/{{*}}", f"{_ATTENTION}{{*}}"),
        (f"{_BLOCK}LayerNorm_1/{{w}}", f"{_BLOCK}LayerNorm_2/{{w}}"),
        (f"{_BLOCK}MlpBlock_0/{{*}}", f"{_BLOCK}MlpBlock_3/{{*}}"),
    ),
    markers=("embedding/kernel", f"{_BLOCK}LayerNorm_0/scale"),
    refusals=(
        Refusal("pre_logits/{w}", "its head has a hidden layer (pre_logits, then tanh), which timm's ViT does not "
                "have; without it the logits would differ"),
    ),
    heads=(f"{_ATTENTION}query/kernel", 1),
    preprocessing=HALF,
)  # fmt: skip


HEAD_WIDTH = 64
"""Channels per attention head, in every size of ECViT."""

_BASE, _PERIODS = 100.0, HEAD_WIDTH // 4


def _periods() -> Tensor:
    """Return a head's rotary periods, in float32 as EdgeCrafter's and timm's modules compute them."""
    import torch

    return _BASE ** (2 * torch.arange(_PERIODS, dtype=torch.float32) / (HEAD_WIDTH // 2))


def _without_periods(tensors: Sequence[Tensor]) -> list[Tensor]:
    token, periods = tensors
    known = _periods().to(periods.device)
    if periods.shape != known.shape or not (periods.is_meta or (periods.float() / known - 1).abs().max() < 1e-2):
        raise ConversionError(f"its rotary periods do not fit heads {HEAD_WIDTH} wide and base {_BASE:g}")
    return [token]


def _with_periods(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensors[0], _periods().to(tensors[0])]


CHECK_PERIODS = Operation("check the rotary periods", _without_periods, "add the rotary periods", _with_periods)
"""Class token and rotary periods <-> class token. timm computes the periods, equal in all models of the layout."""

_CONV = ("conv.weight", "norm.{s}", "conv_bn_fused.{p}")
"""Keys of a convolution and its norm; the last is for both after EdgeCrafter's ``deploy()`` has folded the norm."""

_IN_PARTS = ("in_proj_weight", "in_proj_bias", "out_proj.{p}")

_PROJECTOR = tuple(f"{start}projector.{{i}}.{key}" for start in ("", "backbone.") for key in _CONV)


def _encoder() -> Iterator[str]:
    """Yield the keys of HybridEncoder, which mixes feature maps."""
    layer = "encoder.encoder.{i}.layers.{w}"
    yield from (f"{layer}.self_attn.{key}" for key in _IN_PARTS)
    yield from (f"{layer}.{name}.{{p}}" for name in ("linear1", "linear2", "norm1", "norm2"))
    convs = ["lateral_convs.{i}", *(f"downsample_convs.{{i}}.0.{name}" for name in ("cv1", "cv2"))]
    for blocks in ("fpn_blocks.{i}", "pan_blocks.{i}"):
        convs += [f"{blocks}.cv1", f"{blocks}.cv4"]
        for name in ("cv2.0", "cv3.0"):
            deep = f"{blocks}.{name}.bottlenecks.{{w}}"
            convs.append(f"{blocks}.{name}.conv1")
            yield from (f"encoder.{deep}.{conv}.{key}" for conv in ("conv1", "conv2") for key in _CONV[:2])
            yield f"encoder.{deep}.conv.{{p}}"  # deploy() merges both convolutions
    yield from (f"encoder.{conv}.{key}" for conv in convs for key in _CONV)


def _decoder() -> Iterator[str]:
    """Yield the keys of the decoders for boxes and masks (ECTransformer) and for poses (DETRTransformer)."""
    layer, head = "decoder.decoder.layers.{i}", "decoder.decoder.segmentation_head"
    yield from (f"{layer}.{name}.{key}" for name in ("self_attn", "within_attn", "across_attn") for key in _IN_PARTS)
    for name in (
        *("linear1", "linear2", "norm1", "norm2", "within_norm", "across_norm"),
        *("gateway.gate", "gateway.norm", "cross_attn.sampling_offsets", "cross_attn.attention_weights"),
    ):
        yield f"{layer}.{name}.{{p}}"
    yield f"{layer}.cross_attn.num_points_scale"
    yield from (f"{head}.blocks.{{i}}.{name}.{{p}}" for name in ("dwconv", "norm", "pwconv1"))
    yield from (f"{head}.{name}.{{p}}" for name in ("query_features_block.layers.{i}", "query_features_block.norm_in"))
    yield from (f"{head}.{name}_features_proj.{{p}}" for name in ("query", "spatial"))
    yield f"{head}.bias"
    yield from (f"decoder.{part}{name}" for part in ("", "decoder.") for name in ("up", "reg_scale"))
    yield from (f"decoder.{name}" for name in ("anchors", "valid_mask", "decoder.dim_t"))
    for name in ("denoising_class_embed", "instance_embedding", "keypoint_embedding", "label_enc", "pose_enc",
                 "tgt_embed"):  # fmt: skip
        yield f"decoder.{name}.weight"
    for name in ("class_embed.{i}", "dec_score_head.{i}", "enc_out_class_embed", "enc_output", "enc_output_norm",
                 "enc_score_head"):  # fmt: skip
        yield f"decoder.{name}.{{p}}"
    for name in ("dec_bbox_head.{i}", "decoder.lqe_layers.{i}.reg_conf", "lqe_embed.{i}.reg_conf", "pose_embed.{i}",
                 "decoder.half_pose_ref_point_head", "enc_bbox_head", "enc_pose_embed", "pre_bbox_head",
                 "pre_pose_embed", "query_pos_head"):  # fmt: skip
        yield f"decoder.{name}.layers.{{w}}.{{p}}"


DROPS = (
    *(Drop(key, "projects the backbone's maps for the encoder") for key in _PROJECTOR),
    *(Drop(key, "the encoder mixes maps for the decoder; it is not part of the backbone") for key in _encoder()),
    *(Drop(key, "the decoder finds objects, masks or poses; it is not part of the backbone") for key in _decoder()),
)
"""Every key of a whole model outside the backbone; any other key is an error."""

_CONVS = "patch_embed.convs.{i}."

# Source: Intellindust-AI-Lab/EdgeCrafter, ecdetseg/engine/edgecrafter/ (ecvit.py, hybrid_encoder.py, decoder.py,
# segmentation_head.py), ecpose/engine/edgecrafter/detrpose_transformer.py, and hf_models.ipynb for whole models.
EDGECRAFTER = Layout(
    name="edgecrafter",
    title="a checkpoint of EdgeCrafter's ECViT",
    rows=(
        Row("cls_token", ("register_token", "rope_embed.periods"), CHECK_PERIODS),
        Row("patch_embed.backbone.{n}.conv.{p}", "patch_embed.proj.{p}"),
        Row("patch_embed.backbone.{i}.conv.{p}", f"{_CONVS}conv.{{p}}"),
        Row("patch_embed.backbone.{i}.bn.{s}", f"{_CONVS}norm.{{s}}"),
        *(row for row in TRUNK_ROWS if str(row.timm).startswith("blocks.")),
    ),
    spellings=(
        (f"backbone.backbone.{_CONVS}conv_bn_fused.{{p}}", f"{_CONVS}conv.{{p}}"),
        (f"{_CONVS}conv_bn_fused.{{p}}", f"{_CONVS}conv.{{p}}"),
        ("backbone.backbone.{*}", "{*}"),
        ("backbone.{*}", "{*}"),
    ),
    markers=tuple(f"{start}{_CONVS}{conv}.weight" for start in ("", "backbone.", "backbone.backbone.")
                  for conv in ("conv", "conv_bn_fused")),
    has=("cls_token",),
    stem=(f"{_CONVS}conv.weight", 1),
    stem_stride=2,
    drops=DROPS,
    expresses={
        **PLAIN_TRUNK,
        "rotary": (True,),
        "qkv_bias": (True,),
        "gated_mlp": (False,),
        "stem_norm": ("batchnorm2d",),
        "biased_norm": (False,),
        "last_kernel": (3,),
        "even_kernels": (False,),
        "num_classes": (0,),
    },
    head_width=HEAD_WIDTH,
    preprocessing={**IMAGENET, "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
)  # fmt: skip
