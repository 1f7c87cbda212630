"""The layout of EdgeCrafter's ECViT, alone and inside the detectors, segmenters and pose models built on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from convstem.errors import ConversionError
from convstem.layouts.rows import IMAGENET, PLAIN_TRUNK, Drop, Layout, Operation, Row
from convstem.layouts.timm import TRUNK_ROWS

if TYPE_CHECKING:
    from torch import Tensor

HEAD_WIDTH = 64
"""Channels of an attention head, in every size of ECViT."""

_BASE, _PERIODS = 100.0, HEAD_WIDTH // 4


def _periods() -> Tensor:
    """Return the rotary periods of a head, in float32 as their module and timm's compute them."""
    import torch

    return _BASE ** (2 * torch.arange(_PERIODS, dtype=torch.float32) / (HEAD_WIDTH // 2))


def _without_periods(tensors: Sequence[Tensor]) -> list[Tensor]:
    token, periods = tensors
    known = _periods().to(periods.device)
    if periods.shape != known.shape or not (periods.is_meta or (periods.float() / known - 1).abs().max() < 1e-2):
        raise ConversionError(f"its rotary periods are not those of heads {HEAD_WIDTH} wide and the base {_BASE:g}")
    return [token]


def _with_periods(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensors[0], _periods().to(tensors[0])]


CHECK_PERIODS = Operation("check the rotary periods", _without_periods, "add the rotary periods", _with_periods)
"""The class token, and a table beside it that timm computes: the same for every model of the layout."""

_CONV = ("conv.weight", "norm.{s}", "conv_bn_fused.{p}")
"""Keys of a convolution with its norm; the last where their ``deploy()`` has folded it."""

_ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.{p}")

_PROJECTOR = tuple(f"{start}projector.{{i}}.{key}" for start in ("", "backbone.") for key in _CONV)


def _encoder() -> Iterator[str]:
    """Yield the keys of the encoder that mixes the maps (HybridEncoder)."""
    layer = "encoder.encoder.{i}.layers.{w}"
    yield from (f"{layer}.self_attn.{key}" for key in _ATTENTION)
    yield from (f"{layer}.{name}.{{p}}" for name in ("linear1", "linear2", "norm1", "norm2"))
    convs = ["lateral_convs.{i}", *(f"downsample_convs.{{i}}.0.{name}" for name in ("cv1", "cv2"))]
    for blocks in ("fpn_blocks.{i}", "pan_blocks.{i}"):
        convs += [f"{blocks}.cv1", f"{blocks}.cv4"]
        for name in ("cv2.0", "cv3.0"):
            deep = f"{blocks}.{name}.bottlenecks.{{w}}"
            convs.append(f"{blocks}.{name}.conv1")
            yield from (f"encoder.{deep}.{conv}.{key}" for conv in ("conv1", "conv2") for key in _CONV[:2])
            yield f"encoder.{deep}.conv.{{p}}"  # both in one, after deploy()
    yield from (f"encoder.{conv}.{key}" for conv in convs for key in _CONV)


def _decoder() -> Iterator[str]:
    """Yield the keys of the decoders: of boxes and masks (ECTransformer), and of poses (DETRTransformer)."""
    layer, head = "decoder.decoder.layers.{i}", "decoder.decoder.segmentation_head"
    yield from (f"{layer}.{name}.{key}" for name in ("self_attn", "within_attn", "across_attn") for key in _ATTENTION)
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
"""Every key of a whole model besides the backbone's: one that is not here is an error."""

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
