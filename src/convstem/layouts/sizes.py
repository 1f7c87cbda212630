"""Reads the sizes of a ViT from the shapes of its state dict in timm's layout, and checks every shape against them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from convstem.errors import ConversionError
from convstem.layouts.engine import fill, match, search, stem_layers
from convstem.layouts.timm import PATCHIFY, STEM, TIMM, TRUNK, Key

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
        ConversionError: it lacks a key that no ViT lacks, or its position embedding fits no square grid.
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
        depth=1 + max(found["i"] for key in shapes if (found := match("blocks.{i}.norm1.weight", key))),
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


def _any(shapes: Shapes, template: str) -> bool:
    return bool(search(template, "\n".join(shapes)))


def _head(shapes: Shapes) -> int:
    given = [shapes[key] for key in ("head.weight", "head.bias") if key in shapes]
    return given[0][0] if given and given[0] else 0


def _class_position(tokens: int, prefix: int) -> bool:
    """Tell whether the prefix tokens have positions: whichever leaves a square grid; usually they have."""
    return not prefix or not _square(tokens) or _square(tokens - prefix)


def _square(tokens: int) -> bool:
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


def expected_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return every key of timm's layout that a ViT of these sizes has, with its shape."""
    n = len(sizes.stem.channels) if sizes.stem else 0
    expected = {}
    for table, count in ((TRUNK, sizes.depth), (STEM if sizes.stem else PATCHIFY, n)):
        for key in table:
            if key.when and not getattr(sizes, key.when):
                continue
            for index in range(count if "{i}" in key.keys else 1):
                values = symbols(sizes, index if table is STEM else None)
                shape = tuple(values[word] for word in key.shape.split())
                expected.update({name: () if _counts(name) else shape for name in _names(key, index, n, sizes)})
    return expected


def _names(key: Key, index: int, n: int, sizes: Sizes) -> Iterator[str]:
    words = ["weight", "bias"] if "{p}" in key.keys else [""]
    if "{s}" in key.keys and sizes.stem:
        words = _NORM_TENSORS[sizes.stem.norm][: None if sizes.stem.tracked else 4]
    return (fill(key.keys, {"i": index, "p": word, "s": word}, n) for word in words)


_NORM_TENSORS: Mapping[str, list[str]] = {
    "none": [],
    "layernorm2d": ["weight", "bias"],
    "batchnorm2d": ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"],
}


def _counts(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def symbols(sizes: Sizes, layer: int | None = None) -> dict[str, int]:
    """Return the numbers that the words in timm's table of shapes stand for, in the stem for one layer."""
    width = sizes.embed_dim
    table = {
        **{"1": 1, "d": width, "2d": 2 * width, "3d": 3 * width, "tokens": sizes.tokens, "reg": sizes.reg_tokens},
        **{"mlp": sizes.mlp, "mlp_out": sizes.mlp_out, "classes": sizes.num_classes, "head_dim": sizes.head_dim},
        **{"in_chans": sizes.in_chans, "patch": sizes.patch_size},
    }
    if layer is not None and sizes.stem and sizes.stem.channels:
        channels = (sizes.in_chans, *sizes.stem.channels)
        kernel = sizes.stem.kernel_sizes[layer]
        table |= {"in": channels[layer], "out": channels[layer + 1], "last_in": channels[-1], "kernel": kernel}
    return table


def mismatches(shapes: Shapes, sizes: Sizes, square: bool = True) -> dict[str, str]:
    """Return what is wrong with a state dict in timm's layout, by key: missing, surplus or misshapen.

    Args:
        shapes: shapes by key.
        sizes: what ``measure`` made of them.
        square: the image is square, and so is the grid of positions.
    """
    expected = expected_shapes(sizes)
    wrong = dict.fromkeys(expected.keys() - shapes.keys(), "missing")
    wrong |= {key: f"surplus, {list(shapes[key])}" for key in shapes.keys() - expected.keys()}
    wrong |= {
        key: f"{list(shapes[key])} where the other tensors make it {list(expected[key])}"
        for key in expected.keys() & shapes.keys()
        if tuple(shapes[key]) != expected[key]
    }
    if sizes.mlp not in (sizes.mlp_out, 2 * sizes.mlp_out):
        wrong["blocks.0.mlp.fc2.weight"] = f"its input width {sizes.mlp_out} does not fit fc1's {sizes.mlp}"
    if square and not _square(sizes.patch_tokens):
        prefix = f"with {sizes.prefix_tokens} class and register tokens" if sizes.prefix_tokens else "no class token"
        wrong["pos_embed"] = f"{sizes.tokens} positions are no square grid, {prefix}: is a token missing or surplus?"
    return wrong
