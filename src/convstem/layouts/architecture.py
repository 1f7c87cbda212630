"""Names a checkpoint's architecture from its sizes, its layout, settings in the file, or the user's arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from convstem.errors import ArgumentError, ConversionError
from convstem.layouts.research import MOCO_V3_HEADS
from convstem.layouts.rows import Layout, Naming
from convstem.layouts.timm import NORM_EPS, Sizes, StemSizes
from convstem.layouts.transformers import DINOV2, DINOV2_REGISTERS_NAMING
from convstem.layouts.unwrap import PREPROCESSING, Unwrapped
from convstem.registry import catalog
from convstem.registry.records import ModelSpec
from convstem.registry.stem_spec import StemSpec, default_stem
from convstem.registry.strides import at_stride

TRUNKS: Mapping[tuple[int, int, int], str] = {
    (192, 12, 3): "tiny",
    (384, 12, 6): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1152, 27, 16): "so400m",
    (1280, 32, 16): "huge",
    (1408, 40, 16): "giant",
    (1536, 40, 16): "giantopt",
    (1664, 48, 16): "gigantic",
}
"""(embed_dim, depth, num_heads) of a plain ViT -> timm's word for it. Source: timm/models/vision_transformer.py."""

TRUNK_DEFAULTS: Mapping[str, Any] = {
    "act_layer": None,
    "class_token": True,
    "fc_norm": None,
    "global_pool": "token",
    "init_values": None,
    "no_embed_class": False,
    "norm_eps": NORM_EPS,
    "pre_norm": False,
    "qk_norm": False,
    "qkv_bias": True,
    "reg_tokens": 0,
}

ARGUMENTS = ("act_layer", "img_size", "norm_eps", "num_heads", "stem_last_stride", "stem_strides", "stride")
"""timm's arguments that shapes do not show."""


@dataclass(frozen=True)
class Given:
    """What is known apart from the shapes."""

    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """timm's arguments: the user's, else the file's."""
    hint: str | None = None
    """The architecture's name in the file, possibly another project's."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """Keyed by field of timm's pretrained cfg."""

    @classmethod
    def of(cls, architecture: str | None, facts: Mapping[str, Any], opened: Unwrapped) -> Given:
        """Merge the user's facts with the file's; the user's win.

        Raises:
            ArgumentError: unknown facts.
        """
        allowed = sorted((*ARGUMENTS, *PREPROCESSING))
        unknown = sorted(set(facts) - set(allowed))
        if unknown:
            raise ArgumentError(f"convert also takes {', '.join(allowed)}; got {', '.join(unknown)}")
        arguments, preprocessing = dict(opened.arguments), dict(opened.preprocessing)
        hint = arguments.pop("architecture", None)
        for name, value in facts.items():
            if value is not None:
                known = preprocessing if name in PREPROCESSING else arguments
                known[name] = value
        return cls(architecture, arguments, hint, preprocessing)


def resolve(sizes: Sizes, layout: Layout, given: Given, fixed_positions: bool) -> tuple[str, dict[str, Any]]:
    """Return timm's name of an architecture and the arguments that build a model of these sizes.

    Args:
        sizes: sizes read from the shapes.
        layout: the checkpoint's layout.
        given: facts from the user and the file.
        fixed_positions: the position embedding is MoCo v3's; all its models have 12 heads.

    Raises:
        ArgumentError: the number of heads or the stem's strides are unknown.
        ConversionError: the requested architecture has other sizes.
    """
    positions = "rope" if sizes.rotary else "sincos2d" if fixed_positions else "learn"
    known = {**layout.arguments, **given.arguments, "pos_embed": positions}
    if layout.head_width:
        known.setdefault("num_heads", sizes.embed_dim // layout.head_width)
    if fixed_positions:
        known.setdefault("num_heads", MOCO_V3_HEADS)
    if sizes.gated_mlp and not layout.naming.gated_base and given.architecture is None:
        raise ArgumentError(_ask_for(sizes, "architecture", "the architecture, with a gated MLP (SwiGLU),"))
    if sizes.stem is None:
        return _plain(sizes, _naming(sizes, layout), given.architecture, known)
    spec = _spec(sizes, sizes.stem, given, known)
    return spec.name, _changes(sizes, sizes.stem, spec, layout, known)


def _naming(sizes: Sizes, layout: Layout) -> Naming:
    """Return the layout's naming of plain ViTs. Files of DINOv2 itself have timm's keys, so detect them by sizes."""
    if layout.name == "timm" and sizes.layer_scale and sizes.patch_size == 14:
        for naming in (DINOV2.naming, DINOV2_REGISTERS_NAMING):
            if _usual(sizes, naming):
                return naming
    return layout.naming


def _spec(sizes: Sizes, stem: StemSizes, given: Given, known: Mapping[str, Any]) -> ModelSpec:
    """Return the registry row that fits best; ``_changes`` adds arguments for the differences."""
    if given.architecture is not None:
        spec = catalog.find(given.architecture)
        if not isinstance(spec, ModelSpec):
            raise ArgumentError(
                f"architecture must be one of convstem's own families; {spec.name} has timm's trunk {spec.trunk}, so "
                "its state dicts are already in timm's layout"
            )
        _check_asked(sizes, stem, spec)
        return spec
    rows = [spec for spec in catalog.models().values() if _same_trunk(sizes, spec) and _same_heads(spec, known)]
    rows = [spec for spec in rows if spec.pos_embed == known["pos_embed"]]
    named = catalog.models().get(str(given.hint).partition(".")[0])
    if named is not None and named.embed_dim == sizes.embed_dim and _same_heads(named, known):
        return named
    alike = [spec for spec in rows if _same_stem(stem, spec.stem_for(sizes.in_chans))]
    if alike:
        return alike[0]
    if len({spec.num_heads for spec in rows}) == 1:
        return rows[0]
    if "num_heads" not in known:
        raise ArgumentError(_ask_for(sizes, "num_heads", "the number of attention heads"))
    # No row has this trunk. Any row of the right model class will do, since arguments override every size.
    kind = "vit_s16_cvst" if stem.norm == "layernorm2d" else "vit_b16_convstem"
    return catalog.models()[{"rope": "ecvit_t", "sincos2d": "vit_conv_small"}.get(known["pos_embed"], kind)]


def _same_trunk(sizes: Sizes, spec: ModelSpec) -> bool:
    mlp = int(spec.embed_dim * spec.mlp_ratio)
    return (spec.embed_dim, spec.depth, mlp) == (sizes.embed_dim, sizes.depth, sizes.mlp)


def _same_heads(spec: ModelSpec, known: Mapping[str, Any]) -> bool:
    return known.get("num_heads", spec.num_heads) == spec.num_heads


def _same_stem(stem: StemSizes, own: StemSpec) -> bool:
    norm = {"frozen_bn": "batchnorm2d"}.get(own.norm, own.norm)
    wanted = (stem.channels, stem.kernel_sizes, stem.last_kernel_size, stem.norm)
    return (own.channels, own.kernel_sizes, own.last_kernel_size, norm) == wanted


def _same_convolutions(stem: StemSizes, own: StemSpec) -> bool:
    wanted = (stem.channels, stem.kernel_sizes, stem.last_kernel_size)
    return (own.channels, own.kernel_sizes, own.last_kernel_size) == wanted


_SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio", "img_size", "patch_size")
"""Sizes in a registry row, besides its stem and its trunk's arguments."""

_PATCHES = (2, 4, 8, 16, 32)
"""Patch sizes that have default stems."""

_UNTOLD = ("fc_norm", "global_pool", "img_size", "no_embed_class")
"""Arguments that shapes do not show if positions are rotary."""


def _check_asked(sizes: Sizes, stem: StemSizes, spec: ModelSpec) -> None:
    if _same_trunk(sizes, spec) and len(spec.stem.channels) == len(stem.channels):
        return
    raise ConversionError(
        f"this checkpoint is not a {spec.name}: it has {sizes.depth} blocks of width {sizes.embed_dim}, MLP "
        f"{sizes.mlp} and stem channels {list(stem.channels)}; {spec.name} has {spec.depth} of {spec.embed_dim}, "
        f"{int(spec.embed_dim * spec.mlp_ratio)} and {list(spec.stem.channels)}"
    )


def _changes(
    sizes: Sizes, stem: StemSizes, spec: ModelSpec, layout: Layout, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that turn the registry row into this model."""
    strides, last = _strides(sizes, stem, spec, layout, known)
    patch = math.prod(strides) * last
    own = {name: getattr(spec, name) for name in _SIZES}
    stem_args = spec.stem_for(sizes.in_chans).model_args if patch == spec.patch_size else {}  # else its stem changes
    for arguments in (TRUNK_DEFAULTS, spec.trunk_args, stem_args):
        own.update(arguments)
    wanted = {
        **_trunk_arguments(sizes, known.get("num_heads", spec.num_heads), known),
        "mlp_ratio": spec.mlp_ratio if _same_trunk(sizes, spec) else _mlp_ratio(sizes),
        "img_size": _image_size(sizes, patch, known),
        "patch_size": patch,
        "stem_channels": list(stem.channels),
        "stem_strides": list(strides),
        "stem_kernel_sizes": list(stem.kernel_sizes),
        "stem_norm": stem.norm if stem.tracked or stem.norm != "batchnorm2d" else "frozen_bn",
        "stem_bias": stem.bias,
        "stem_last_kernel_size": stem.last_kernel_size,
        "stem_last_stride": last,
    }
    if sizes.rotary:  # no tensor shows pooling or positions
        wanted = {name: value for name, value in wanted.items() if name not in _UNTOLD or name in known}
    args = {name: value for name, value in wanted.items() if own.get(name) != value}
    if args.get("init_values") and own.get("init_values"):
        del args["init_values"]  # only its presence matters: the checkpoint has the LayerScale values
    return args


def _strides(
    sizes: Sizes, stem: StemSizes, spec: ModelSpec, layout: Layout, known: Mapping[str, Any]
) -> tuple[tuple[int, ...], int]:
    """Return the strides of a stem's layers and of its last convolution."""
    own = _strides_of_layout(sizes, stem, spec, layout, known.get("stride"))
    strides, last = own or (None, None)
    strides, last = known.get("stem_strides", strides), known.get("stem_last_stride", last)
    if strides is None:
        raise ArgumentError(_ask_for(sizes, "stem_strides", f"the strides of the {len(stem.channels)} stem layers"))
    kernel = stem.last_kernel_size
    if last is None and kernel > 1:
        raise ArgumentError(_ask_for(sizes, "stem_last_stride", f"the stride of the stem's last {kernel}x{kernel}"))
    return tuple(strides), 1 if kernel == 1 else int(last)


def _strides_of_layout(
    sizes: Sizes, stem: StemSizes, spec: ModelSpec, layout: Layout, stride: int | None
) -> tuple[tuple[int, ...], int] | None:
    """Return the strides of known stems like this one, or those common to the layout; None if they are ambiguous."""
    own, *others = _possible_stems(sizes, spec, stride)
    for alike in (_same_stem, _same_convolutions):  # the second ignores the norm, which may have been folded
        found = [own] if alike(stem, own) else [other for other in others if alike(stem, other)]
        strides = {(other.strides, other.last_stride) for other in found}
        if len(strides) == 1:
            return strides.pop()
    stride = layout.stem_stride
    return ((stride,) * len(stem.channels), 1 if stem.last_kernel_size == 1 else stride) if stride else None


def _possible_stems(sizes: Sizes, spec: ModelSpec, stride: int | None) -> Iterator[StemSpec]:
    """Yield the stems of all rows, ``spec`` first, then the default stems for other patch sizes.

    If the file states a ``stride`` (shapes do not show it), yield each stem at that stride, if it has one.
    """
    for row in (spec, *catalog.models().values()):
        own = row.stem_for(sizes.in_chans)
        with suppress(ArgumentError):
            yield at_stride(own, stride) if stride else own
    for patch in _PATCHES:
        yield default_stem(patch, sizes.embed_dim, sizes.in_chans, stride)


def _plain(sizes: Sizes, naming: Naming, asked: str | None, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments of a plain ViT (no conv stem); ``asked`` is the user's name for it."""
    from timm.models import is_model

    size = _image_size(sizes, sizes.patch_size, known)
    if asked is not None:
        if not is_model(asked):
            raise ArgumentError(f"timm has no architecture {asked!r}; `timm.list_models('vit_*')` lists its ViTs")
        return asked, {"img_size": size}
    act = known.get("act_layer", "gelu")
    words = {"patch": sizes.patch_size, "act": "_quickgelu" if act == "quick_gelu" else ""}
    trunks = _trunks(sizes, naming)
    names = {  # timm's names have the model's own image size, or 224 or 256
        name: (heads, image)
        for heads, word in trunks.items()
        for image in (size, 224, 256)
        if is_model(name := naming.pattern.format(size=word, img=image, **words))
    }
    heads = _heads(sizes, known, {heads for heads, _ in names.values()} or set(trunks))
    if not names or not _usual(sizes, naming):
        base = naming.gated_base if sizes.gated_mlp else naming.base
        return base.format(**words), {**_unlike_base(sizes, heads, size, known), **_act(act, naming)}
    # Prefer the right number of heads to the right image size, which every model takes as an argument.
    name = min(names, key=lambda name: (names[name][0] != heads, names[name][1] != size))
    own_heads, image = names[name]
    args: dict[str, Any] = {}
    if own_heads != heads:
        args["num_heads"] = heads
    if image != size or "{img}" not in naming.pattern:
        args["img_size"] = size
    return name, {**args, **_act(act, naming)}


def _trunks(sizes: Sizes, naming: Naming) -> dict[int, str]:
    """Return num_heads -> timm's word, for trunks of this width and depth."""
    size = (sizes.embed_dim, sizes.depth)
    trunks = {**TRUNKS, **naming.gated_trunks}
    return {heads: word for (width, depth, heads), word in trunks.items() if (width, depth) == size}


def _act(act: str, naming: Naming) -> dict[str, str]:
    """Return the activation argument, unless the name or the default implies it."""
    named = "{act}" in naming.pattern and act == "quick_gelu"
    return {} if act == "gelu" or named else {"act_layer": act}


def _heads(sizes: Sizes, known: Mapping[str, Any], usual: set[int]) -> int:
    """Return num_heads from the shapes, else from known facts, else from timm's models of this size."""
    if sizes.head_dim:
        return sizes.embed_dim // sizes.head_dim
    if "num_heads" in known:
        return int(known["num_heads"])
    if len(usual) != 1:
        raise ArgumentError(_ask_for(sizes, "num_heads", "the number of attention heads"))
    return usual.pop()


def _usual(sizes: Sizes, naming: Naming) -> bool:
    """Return whether the model has the tokens, norms and pooling that the naming implies."""
    usual = {**_FIRST_VIT, **naming.usual}
    gated = (sizes.embed_dim, sizes.depth) in {(width, depth) for width, depth, _ in naming.gated_trunks}
    return sizes.gated_mlp == gated and all(getattr(sizes, name) == value for name, value in usual.items())


_FIRST_VIT = {"class_token": True, "class_position": True, "reg_tokens": 0, "qk_norm": False, "qkv_bias": True,
              "layer_scale": False, "pre_norm": False, "fc_norm": False, "map_pool": False}  # fmt: skip


def _unlike_base(sizes: Sizes, heads: int, size: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    args = _trunk_arguments(sizes, heads, known)
    del args["norm_eps"], args["act_layer"]  # timm takes eps in a norm class, not valid JSON; _act adds act_layer
    changed = {name: value for name, value in args.items() if TRUNK_DEFAULTS.get(name, object()) != value}
    return {**changed, "patch_size": sizes.patch_size, "img_size": size}


def _trunk_arguments(sizes: Sizes, heads: int, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's arguments for a trunk.

    Args:
        sizes: sizes read from the shapes.
        heads: number of attention heads.
        known: other facts, by timm's argument name.
    """
    act, pool = known.get("act_layer", "gelu"), _pool(sizes)
    return {
        "act_layer": None if act == "gelu" else act,
        "embed_dim": sizes.embed_dim,
        "depth": sizes.depth,
        "num_heads": heads,
        "mlp_ratio": _mlp_ratio(sizes),
        "class_token": sizes.class_token,
        "fc_norm": False if pool == "avg" and not sizes.fc_norm else None,
        "global_pool": pool,
        "init_values": 1e-5 if sizes.layer_scale else None,
        "no_embed_class": sizes.prefix_tokens > 0 and not sizes.class_position,
        "norm_eps": known.get("norm_eps", NORM_EPS),
        "pre_norm": sizes.pre_norm,
        "qk_norm": sizes.qk_norm,
        "qkv_bias": sizes.qkv_bias,
        "reg_tokens": sizes.reg_tokens,
    }


def _pool(sizes: Sizes) -> str:
    if sizes.map_pool:
        return "map"
    return "avg" if sizes.fc_norm or not sizes.class_token else "token"


def _mlp_ratio(sizes: Sizes) -> float:
    """Return a ratio that timm's rounding down turns into this MLP's width."""
    ratio = sizes.mlp / sizes.embed_dim
    return ratio if int(sizes.embed_dim * ratio) == sizes.mlp else (sizes.mlp + 0.5) / sizes.embed_dim


def _image_size(sizes: Sizes, patch: int, known: Mapping[str, Any]) -> Any:
    """Return the stated image size, else that of a square grid of patches."""
    size = known.get("img_size")
    return size if size is not None else round(sizes.patch_tokens**0.5) * patch


def _ask_for(sizes: Sizes, name: str, what: str) -> str:
    """Return the sentence that asks for the argument ``name`` or for the architecture, which implies it."""
    names = sorted({name, "architecture"}, reverse=True)
    arguments, options = [f"{name}=" for name in names], [f"--{name.replace('_', '-')}" for name in names]
    return (
        f"{what} cannot be read from this checkpoint ({sizes.depth} blocks of width {sizes.embed_dim}): pass "
        f"{' or '.join(arguments)} ({', '.join(options)})"
    )
