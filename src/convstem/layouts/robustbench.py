"""The layout of Singh et al. 2023 (revisiting-at) and of RobustBench's zoo: timm's, with the stem inside ``proj``."""

from __future__ import annotations

from convstem.layouts.rows import IMAGENET, Layout, Row
from convstem.layouts.timm import TRUNK_ROWS

_STEM = "patch_embed.proj.stem."

# Source: nmndeep/revisiting-at, utils_architecture.py (ConvBlock, ConvBlock2); RobustBench/robustbench,
# robustbench/model_zoo/architectures/convstem_models.py.
ROBUSTBENCH = Layout(
    name="robustbench",
    title="a ConvStem checkpoint of revisiting-at or RobustBench",
    rows=(
        *TRUNK_ROWS,
        Row("patch_embed.backbone.{n}.conv.{p}", f"{_STEM}{{3n}}.{{p}}"),
        Row("patch_embed.backbone.{i}.conv.{p}", f"{_STEM}{{3i}}.{{p}}"),
        Row("patch_embed.backbone.{i}.bn.{p}", f"{_STEM}{{3i+1}}.{{p}}"),
    ),
    markers=(f"{_STEM}{{3i}}.weight",),
    has=("cls_token",),
    stem=(f"{_STEM}{{3i}}.weight", 0),
    expresses={"stem_norm": ("layernorm2d",), "stem_bias": (True,)},
    facts={"stem_stride": 2},
    preprocessing={**IMAGENET, "crop_pct": 0.875, "interpolation": "bicubic"},
)
