"""MoCo v3's layout: timm's, with the stem in one ``Sequential`` and the projector in place of the head."""

from __future__ import annotations

from convstem.layouts.rows import IMAGENET, PLAIN_TRUNK, Drop, Layout, Row
from convstem.layouts.timm import PATCHIFY, TRUNK_ROWS

_STEM = "patch_embed.proj."

# Source: facebookresearch/moco-v3, vits.py (ConvStem, VisionTransformerMoCo) and moco/builder.py (MoCo_ViT).
MOCO_V3 = Layout(
    name="moco_v3",
    title="a MoCo v3 checkpoint",
    rows=(
        *TRUNK_ROWS,
        *(Row(key.keys, key.keys) for key in PATCHIFY),
        Row("patch_embed.backbone.{n}.conv.{p}", f"{_STEM}{{3n}}.{{p}}"),
        Row("patch_embed.backbone.{i}.conv.weight", f"{_STEM}{{3i}}.weight"),
        Row("patch_embed.backbone.{i}.bn.{s}", f"{_STEM}{{3i+1}}.{{s}}"),
    ),
    markers=(f"{_STEM}{{3i}}.weight",),
    has=("cls_token",),
    stem=(f"{_STEM}{{3i}}.weight", 0),
    drops=(Drop("head.{i}.{*}", "the projector is only for pre-training"),),
    expresses={
        **PLAIN_TRUNK,
        "stem_norm": ("", "batchnorm2d"),
        "biased_norm": (False,),
    },
    facts={"num_heads": 12, "stem_stride": 2},  # 12 heads at every width, the small one too
    preprocessing=IMAGENET,
    names="vit_{size}_patch{patch}_{img}",
)
