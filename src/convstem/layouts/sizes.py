"""Reads the sizes of a ViT from the shapes of its state dict in timm's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convstem.errors import ConversionError
from convstem.layouts.engine import stem_layers
from convstem.layouts.templates import match, search
from convstem.layouts.timm import PATCHIFY, TIMM

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class StemSizes:
    """What the shapes of a conv stem say; strides they do not."""

    channels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    norm: str
    bias: bool
    tracked: bool
    """Whether its norms count batches, as BatchNorm does and a frozen one does not."""


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a ViT's state dict say. Truth values tell which keys there are."""

    embed_dim: int
    depth: int
    mlp: int
    mlp_out: int
    tokens: int
    in_chans: int
    num_classes: int
    class_token: bool
    class_position: bool
    """Whether the position embedding has a position for the class token (and registers)."""
    reg_tokens: int
    qkv_bias: bool
    qk_norm: bool
    head_dim: int
    """0 where no tensor has it."""
    layer_scale: bool
    pre_norm: bool
    norm: bool
    fc_norm: bool
    map_pool: bool
    head_bias: bool
    patch_size: int
    """Of a patchify ViT; 0 with a conv stem."""
    patch_bias: bool
    stem: StemSizes | None

    @property
    def stem_norm(self) -> str:
        """The stem's norm, empty for a patchify ViT."""
        return self.stem.norm if self.stem else ""

    @property
    def stem_bias(self) -> bool:
        """Whether the stem's layers before the last have a bias."""
        return bool(self.stem and self.stem.bias)

    @property
    def biased_norm(self) -> bool:
        """Whether the stem's convolutions have biases although a norm follows them."""
        return self.stem_bias and self.stem_norm != "none"

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP multiplies its two halves (SwiGLU)."""
        return self.mlp == 2 * self.mlp_out

    @property
    def prefix_tokens(self) -> int:
        """Class token and registers."""
        return int(self.class_token) + self.reg_tokens

    @property
    def patch_tokens(self) -> int:
        """Tokens of the image in the position embedding."""
        return self.tokens - self.prefix_tokens * self.class_position


def measure(shapes: Shapes) -> Sizes:
    """Return the sizes that a state dict in timm's layout has.

    Args:
        shapes: shapes by key.

    Raises:
        ConversionError: it lacks a key that no ViT lacks, names a block far beyond those it holds, or its position
            embedding fits no square grid.
    """
    width = _dims(shapes, "blocks.0.norm1.weight", 1)[0]
    qk_norm = _any(shapes, "blocks.{i}.attn.q_norm.{p}") or _any(shapes, "blocks.{i}.attn.k_norm.{p}")
    first = "patch_embed.backbone.0.conv.weight" if _any(shapes, "patch_embed.backbone.{*}") else PATCHIFY[0].keys
    class_token = "cls_token" in shapes
    registers = _dims(shapes, "reg_token", 3)[1] if "reg_token" in shapes else 0
    tokens = _dims(shapes, "pos_embed", 3)[1]
    fc_norm = _any(shapes, "fc_norm.{p}")
    return Sizes(
        embed_dim=width,
        depth=_depth(shapes),
        mlp=_dims(shapes, "blocks.0.mlp.fc1.weight", 2)[0],
        mlp_out=_dims(shapes, "blocks.0.mlp.fc2.weight", 2)[1],
        tokens=tokens,
        in_chans=_dims(shapes, first, 4)[1],
        num_classes=_head(shapes),
        class_token=class_token,
        class_position=_class_position(tokens, class_token + registers),
        reg_tokens=registers,
        qkv_bias=_any(shapes, "blocks.{i}.attn.qkv.bias"),
        qk_norm=qk_norm,
        head_dim=_dims(shapes, "blocks.0.attn.q_norm.weight", 1)[0] if qk_norm else 0,
        layer_scale=_any(shapes, "blocks.{i}.ls1.gamma") or _any(shapes, "blocks.{i}.ls2.gamma"),
        pre_norm=_any(shapes, "norm_pre.{p}"),
        norm=not fc_norm,
        fc_norm=fc_norm,
        map_pool=_any(shapes, "attn_pool.{*}"),
        head_bias="head.weight" in shapes or "head.bias" in shapes,
        patch_size=_dims(shapes, first, 4)[-1] if first == PATCHIFY[0].keys else 0,
        patch_bias=not _any(shapes, "norm_pre.{p}") or "patch_embed.proj.bias" in shapes,
        stem=None if first == PATCHIFY[0].keys else _stem(shapes),
    )


def _dims(shapes: Shapes, key: str, axes: int) -> tuple[int, ...]:
    if key not in shapes:
        raise ConversionError(f"this state dict lacks {key}, which every ViT of its kind has")
    if len(shapes[key]) != axes:
        raise ConversionError(f"{key} has the shape {list(shapes[key])}; expected {axes} axes")
    return shapes[key]


def _depth(shapes: Shapes) -> int:
    depth = 1 + max(found["i"] for key in shapes if (found := match("blocks.{i}.norm1.weight", key)))
    if depth > len(shapes):  # every block has tensors: a key of a hostile file would have us list each missing one
        raise ConversionError(
            f"the state dict names block {depth - 1} but has {len(shapes)} tensors in all: it is damaged, or no ViT"
        )
    return depth


def _any(shapes: Shapes, template: str) -> bool:
    return bool(search(template, "\n".join(shapes)))


def _head(shapes: Shapes) -> int:
    given = [shapes[key] for key in ("head.weight", "head.bias") if key in shapes]
    return given[0][0] if given and given[0] else 0


def _class_position(tokens: int, prefix: int) -> bool:
    """Tell whether the prefix tokens have positions: whichever leaves a square grid; usually they have."""
    return not prefix or not is_square(tokens) or is_square(tokens - prefix)


def is_square(tokens: int) -> bool:
    """Tell whether some tokens make a square grid."""
    return tokens > 0 and round(tokens**0.5) ** 2 == tokens


def _stem(shapes: Shapes) -> StemSizes:
    layers = range(stem_layers(shapes, TIMM))
    convs = [_dims(shapes, f"patch_embed.backbone.{i}.conv.weight", 4) for i in layers]
    statistics = [_any(shapes, f"patch_embed.backbone.{{i}}.bn.{name}") for name in ("weight", "running_mean")]
    tracked = _any(shapes, "patch_embed.backbone.{i}.bn.num_batches_tracked")
    norm = {(False, False): "none", (True, False): "layernorm2d"}.get((statistics[0], statistics[1]), "batchnorm2d")
    bias = any(f"patch_embed.backbone.{i}.conv.bias" in shapes for i in layers)
    return StemSizes(
        tuple(conv[0] for conv in convs), tuple(conv[-1] for conv in convs), norm, bias or norm == "none", tracked
    )
