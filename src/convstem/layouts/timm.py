"""timm's layout, which every other layout maps to: its keys, their shapes, and the sizes in them.

``measure`` reads a ViT's sizes from the shapes of its tensors. ``contradictions`` says which tensors do not fit them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from convstem.errors import ConversionError
from convstem.layouts.comparison import compare_shapes, in_words
from convstem.layouts.rows import Drop, Layout, Row, fill, match, search
from convstem.registry.tables import FIRST_CONV


@dataclass(frozen=True)
class Key:
    """A template of timm's keys, and the shape of their tensors in the words of ``symbols``.

    ``when`` names a field of ``Sizes`` that must be true for the keys to exist; if empty, every model has them.
    """

    keys: str
    shape: str
    when: str = ""


# Source: timm/models/vision_transformer.py (VisionTransformer, Block, AttentionPoolLatent).
TRUNK = (
    Key("cls_token", "1 1 d", "class_token"),
    Key("reg_token", "1 reg d", "reg_tokens"),
    Key("pos_embed", "1 tokens d", "tokens"),
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
    Key("patch_embed.backbone.{n}.conv.weight", "d last_in last_kernel last_kernel", "stem"),
    Key("patch_embed.backbone.{n}.conv.bias", "d", "stem"),
    Key("patch_embed.backbone.{i}.conv.weight", "out in kernel kernel", "stem"),
    Key("patch_embed.backbone.{i}.conv.bias", "out", "stem_bias"),
)

STEM_START, PATCH_WEIGHT = "patch_embed.backbone.", PATCHIFY[0].keys
"""Prefix of a stem's keys, and the key that only a patchify ViT has."""

TRUNK_ROWS = tuple(Row(key.keys, key.keys) for key in TRUNK)
PATCHIFY_ROWS = tuple(Row(key.keys, key.keys) for key in PATCHIFY)

TIMM = Layout(
    name="timm",
    title="a checkpoint in timm's layout",
    rows=(*TRUNK_ROWS, *PATCHIFY_ROWS, *(Row(key.keys, key.keys) for key in STEM)),
    markers=("patch_embed.backbone.{i}.conv.weight", PATCH_WEIGHT),
    spellings=(  # DINOv2's keys; its blocks may come in chunks
        ("blocks.{w}.{i}.mlp.w12.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("blocks.{w}.{i}.mlp.w3.{p}", "blocks.{i}.mlp.fc2.{p}"),
        ("blocks.{w}.{i}.{*}", "blocks.{i}.{*}"),
        ("blocks.{i}.mlp.w12.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("blocks.{i}.mlp.w3.{p}", "blocks.{i}.mlp.fc2.{p}"),
    ),
    # ECViT's stem (its last convolution is named like a patch embedding), and registers in DINOv2's own files
    unless=("patch_embed.convs.{i}.{*}", "register_tokens"),
    stem=("patch_embed.backbone.{i}.conv.weight", 0),
    drops=(
        Drop("mask_token", "only masked-image training uses the mask token"),
        Drop("decoder_{*}", "MAE's decoder is only for pre-training"),
    ),
)

NORM_EPS = 1e-6
"""Epsilon of the LayerNorms in timm's and torchvision's ViTs."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class StemSizes:
    """Sizes of a conv stem, read from its shapes. Shapes do not show the strides."""

    channels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    norm: str
    bias: bool
    last_kernel_size: int
    tracked: bool
    """Whether its norms have ``num_batches_tracked``: BatchNorm has it, a frozen one has not."""


@dataclass(frozen=True)
class Sizes:
    """Sizes read from the shapes of a ViT's state dict. A bool says whether it has keys of that kind."""

    embed_dim: int
    depth: int
    mlp: int
    mlp_out: int
    tokens: int
    """Length of the position embedding; 0 if positions are rotary."""
    in_chans: int
    num_classes: int
    class_token: bool
    class_position: bool
    """Whether the position embedding has a position for the class token (and registers)."""
    reg_tokens: int
    qkv_bias: bool
    qk_norm: bool
    head_dim: int
    """0 if no tensor shows it."""
    layer_scale: bool
    pre_norm: bool
    norm: bool
    fc_norm: bool
    map_pool: bool
    head_bias: bool
    patch_size: int
    """For a patchify ViT; 0 with a conv stem."""
    patch_bias: bool
    stem: StemSizes | None

    @property
    def rotary(self) -> bool:
        """Whether positions are rotary, so that no tensor holds them."""
        return not self.tokens

    @property
    def stem_norm(self) -> str:
        """The stem's norm, empty for a patchify ViT."""
        return self.stem.norm if self.stem else ""

    @property
    def stem_bias(self) -> bool:
        """Whether the stem's layers before the last have a bias."""
        return bool(self.stem and self.stem.bias)

    @property
    def last_kernel(self) -> int:
        """Kernel size of the stem's last convolution; 1 for a patchify ViT."""
        return self.stem.last_kernel_size if self.stem else 1

    @property
    def even_kernels(self) -> bool:
        """Whether a stem convolution before the last has an even kernel."""
        return bool(self.stem and any(kernel % 2 == 0 for kernel in self.stem.kernel_sizes))

    @property
    def biased_norm(self) -> bool:
        """Whether the stem's convolutions have biases although norms follow them."""
        return self.stem_bias and self.stem_norm != "none"

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP multiplies its two halves (SwiGLU)."""
        return self.mlp == 2 * self.mlp_out

    @property
    def prefix_tokens(self) -> int:
        """Number of class and register tokens."""
        return self.reg_tokens + 1 if self.class_token else self.reg_tokens

    @property
    def patch_tokens(self) -> int:
        """Number of patch tokens in the position embedding; 0 without one."""
        if self.rotary:
            return 0
        return self.tokens - self.prefix_tokens if self.class_position else self.tokens


def measure(shapes: Shapes) -> Sizes:
    """Return the sizes of a state dict in timm's layout.

    Args:
        shapes: shapes by key.

    Raises:
        ConversionError: it lacks a key that every ViT has, a key has the wrong number of axes, or a block index exceeds
            the number of tensors.
    """
    width = _dims(shapes, "blocks.0.norm1.weight", 1)[0]
    qk_norm = _any(shapes, "blocks.{i}.attn.q_norm.{p}") or _any(shapes, "blocks.{i}.attn.k_norm.{p}")
    has_stem = _any(shapes, "patch_embed.backbone.{*}")
    first = _dims(shapes, f"{FIRST_CONV}.weight" if has_stem else PATCH_WEIGHT, 4)
    class_token = "cls_token" in shapes
    registers = _dims(shapes, "reg_token", 3)[1] if "reg_token" in shapes else 0
    tokens = 0 if _is_ecvit(shapes) else _dims(shapes, "pos_embed", 3)[1]
    pre_norm = _any(shapes, "norm_pre.{p}")
    fc_norm = _any(shapes, "fc_norm.{p}")
    return Sizes(
        embed_dim=width,
        depth=_depth(shapes),
        mlp=_dims(shapes, "blocks.0.mlp.fc1.weight", 2)[0],
        mlp_out=_dims(shapes, "blocks.0.mlp.fc2.weight", 2)[1],
        tokens=tokens,
        in_chans=first[1],
        num_classes=_head(shapes),
        class_token=class_token,
        class_position=_class_position(tokens, registers + 1 if class_token else registers),
        reg_tokens=registers,
        qkv_bias=_any(shapes, "blocks.{i}.attn.qkv.bias"),
        qk_norm=qk_norm,
        head_dim=_dims(shapes, "blocks.0.attn.q_norm.weight", 1)[0] if qk_norm else 0,
        layer_scale=_any(shapes, "blocks.{i}.ls1.gamma") or _any(shapes, "blocks.{i}.ls2.gamma"),
        pre_norm=pre_norm,
        norm=bool(tokens) and not fc_norm,
        fc_norm=fc_norm,
        map_pool=_any(shapes, "attn_pool.{*}"),
        head_bias="head.weight" in shapes or "head.bias" in shapes,
        patch_size=0 if has_stem else first[-1],
        patch_bias=not pre_norm or "patch_embed.proj.bias" in shapes,
        stem=_stem(shapes) if has_stem else None,
    )


def _is_ecvit(shapes: Shapes) -> bool:
    """Return whether it is an ECViT: no position embedding, no final norm, the stem's last convolution not a 1x1."""
    last = shapes.get(f"patch_embed.backbone.{TIMM.stem_layers(shapes)}.conv.weight", (1,))
    others = ("pos_embed", "norm.{p}", "fc_norm.{p}")
    return last[-1:] != (1,) and not any(_any(shapes, keys) for keys in others)


def _dims(shapes: Shapes, key: str, axes: int) -> tuple[int, ...]:
    if key not in shapes:
        raise ConversionError(f"this state dict lacks {key}, which every ViT of its kind has")
    if len(shapes[key]) != axes:
        raise ConversionError(f"{key} has the shape {list(shapes[key])}; expected {axes} axes")
    return shapes[key]


def _depth(shapes: Shapes) -> int:
    depth = 1 + max(found["i"] for key in shapes if (found := match("blocks.{i}.norm1.weight", key)))
    if depth > len(shapes):  # a block has tensors; do not list millions of missing keys for a hostile index
        raise ConversionError(
            f"the state dict names block {depth - 1} but has {len(shapes)} tensors in all: it is damaged, or not a ViT"
        )
    return depth


def _any(shapes: Shapes, template: str) -> bool:
    return bool(search(template, "\n".join(shapes)))


def _head(shapes: Shapes) -> int:
    given = [shapes[key] for key in ("head.weight", "head.bias") if key in shapes]
    return given[0][0] if given and given[0] else 0


def _class_position(tokens: int, prefix: int) -> bool:
    """Return whether the prefix tokens have positions. That is assumed unless only the opposite gives a square grid."""
    return not prefix or not tokens or not is_square(tokens) or is_square(tokens - prefix)


def is_square(tokens: int) -> bool:
    """Return whether this number of tokens is a square."""
    return tokens > 0 and round(tokens**0.5) ** 2 == tokens


def _stem(shapes: Shapes) -> StemSizes:
    layers = range(TIMM.stem_layers(shapes))
    convs = [_dims(shapes, f"patch_embed.backbone.{i}.conv.weight", 4) for i in layers]
    norm = _stem_norm(shapes)
    last = _dims(shapes, f"patch_embed.backbone.{len(layers)}.conv.weight", 4)
    return StemSizes(
        channels=tuple(conv[0] for conv in convs),
        kernel_sizes=tuple(conv[-1] for conv in convs),
        norm=norm,
        bias=norm == "none" or any(f"patch_embed.backbone.{i}.conv.bias" in shapes for i in layers),
        last_kernel_size=last[-1],
        tracked=_any(shapes, "patch_embed.backbone.{i}.bn.num_batches_tracked"),
    )


def _stem_norm(shapes: Shapes) -> str:
    if _any(shapes, "patch_embed.backbone.{i}.bn.running_mean"):
        return "batchnorm2d"
    return "layernorm2d" if _any(shapes, "patch_embed.backbone.{i}.bn.weight") else "none"


def expected_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return every timm key of a ViT of these sizes, with its shape."""
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
        words = [word for word in _NORM_TENSORS[sizes.stem.norm] if sizes.stem.tracked or not _counts(word)]
    return (fill(key.keys, {"i": index, "p": word, "s": word}, n) for word in words)


_NORM_TENSORS: Mapping[str, list[str]] = {
    "none": [],
    "layernorm2d": ["weight", "bias"],
    "batchnorm2d": ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"],
}


def _counts(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def symbols(sizes: Sizes, layer: int | None = None) -> dict[str, int]:
    """Return the number for each word in the shapes of ``Key``; ``layer`` selects a stem layer."""
    width = sizes.embed_dim
    table = {
        "1": 1,
        "d": width,
        "2d": 2 * width,
        "3d": 3 * width,
        "tokens": sizes.tokens,
        "reg": sizes.reg_tokens,
        "mlp": sizes.mlp,
        "mlp_out": sizes.mlp_out,
        "classes": sizes.num_classes,
        "head_dim": sizes.head_dim,
        "in_chans": sizes.in_chans,
        "patch": sizes.patch_size,
    }
    if layer is not None and sizes.stem and sizes.stem.channels:
        channels = (sizes.in_chans, *sizes.stem.channels)
        table["in"], table["out"], table["last_in"] = channels[layer], channels[layer + 1], channels[-1]
        table["kernel"], table["last_kernel"] = sizes.stem.kernel_sizes[layer], sizes.stem.last_kernel_size
    return table


def contradictions(shapes: Shapes, sizes: Sizes, square: bool, named: Callable[[str], str]) -> str:
    """Return where a state dict in timm's layout does not fit together; empty if it does.

    Args:
        shapes: shapes by key.
        sizes: what ``measure`` returned for them.
        square: images, and so the grid of positions, are square.
        named: returns the name to print for a key.
    """
    found = [in_words(compare_shapes(shapes, expected_shapes(sizes), named))]
    if sizes.mlp not in (sizes.mlp_out, 2 * sizes.mlp_out):
        fc2 = named("blocks.0.mlp.fc2.weight")
        found.append(f"{fc2}: its input width {sizes.mlp_out} does not fit fc1's {sizes.mlp}")
    if square and not sizes.rotary and not is_square(sizes.patch_tokens):
        prefix = f"with {sizes.prefix_tokens} class and register tokens" if sizes.prefix_tokens else "no class token"
        grid = f"{sizes.tokens} positions are no square grid, {prefix}: is a token missing or surplus?"
        found.append(f"{named('pos_embed')}: {grid}")
    return "; ".join(filter(None, found))
