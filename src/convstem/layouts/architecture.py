"""Names the architecture of a checkpoint: from its sizes, from what its layout and its file say, or from the user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convstem.errors import ArgumentError, ConversionError
from convstem.layouts.engine import Layout
from convstem.layouts.sizes import Sizes, StemSizes
from convstem.layouts.unwrap import Unwrapped
from convstem.registry import catalog
from convstem.registry.records import ModelSpec
from convstem.registry.stem_spec import StemSpec

FACTS = ("act_layer", "img_size", "norm_eps", "num_heads", "stem_strides")
"""What shapes do not tell, by timm's argument."""

PREPROCESSING = ("mean", "std")

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
"""timm's word for a plain ViT's width, depth and heads. Source: timm/models/vision_transformer.py."""


@dataclass(frozen=True)
class Given:
    """What is known besides the shapes."""

    architecture: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """From the user, else from the file, by timm's argument."""
    hint: str | None = None
    """The architecture's name in the file, which may be another project's."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """By field of timm's pretrained cfg."""

    @classmethod
    def of(cls, architecture: str | None, facts: Mapping[str, Any], opened: Unwrapped) -> Given:
        """Join what the user says with what the file says; the user is right.

        Raises:
            ArgumentError: facts that nobody asks for.
        """
        unknown = sorted(set(facts) - {*FACTS, *PREPROCESSING})
        if unknown:
            raise ArgumentError(
                f"convert takes {', '.join(sorted((*FACTS, *PREPROCESSING)))} besides; got {', '.join(unknown)}"
            )
        known = {**opened.facts, **{key: value for key, value in facts.items() if value is not None}}
        hint = known.pop("architecture", None)
        preprocessing = {**opened.preprocessing, **{key: known.pop(key) for key in PREPROCESSING if key in known}}
        return cls(architecture, known, hint, preprocessing)


def resolve(sizes: Sizes, layout: Layout, given: Given, fixed_positions: bool) -> tuple[str, dict[str, Any]]:
    """Return timm's name of an architecture and the arguments it takes to build a model of these sizes.

    Args:
        sizes: what the shapes say.
        layout: where the checkpoint comes from.
        given: what the user and the file say.
        fixed_positions: the position embedding is MoCo v3's, whose models have 12 heads at every width.

    Raises:
        ArgumentError: the number of heads or the strides of the stem cannot be told.
        ConversionError: the architecture asked for has other sizes.
    """
    moco = {"num_heads": 12} if fixed_positions else {}
    facts = {**moco, **layout.facts, **given.facts, "pos_embed": "sincos2d" if fixed_positions else "learn"}
    if sizes.gated_mlp and "gated_base" not in facts and given.architecture is None:
        raise ArgumentError(_ask(sizes, "architecture", "the architecture, whose MLP is gated (SwiGLU),"))
    if sizes.stem is None:
        return _plain(sizes, layout, given.architecture, facts)
    spec = _spec(sizes, sizes.stem, layout, given, facts)
    return spec.name, _arguments(sizes, sizes.stem, spec, facts)


def _spec(sizes: Sizes, stem: StemSizes, layout: Layout, given: Given, facts: Mapping[str, Any]) -> ModelSpec:
    """Return the registry's row that fits best."""
    if given.architecture is not None:
        spec = catalog.find(given.architecture)
        if not isinstance(spec, ModelSpec):
            raise ArgumentError(
                f"architecture must be one of convstem's own families; {spec.name} has timm's trunk {spec.trunk}, and "
                "its state dicts are in timm's layout already"
            )
        _check_asked(sizes, stem, spec)
        return spec
    rows = [spec for spec in catalog.models().values() if _same_trunk(sizes, spec) and _same_heads(spec, facts)]
    rows = [spec for spec in rows if spec.pos_embed == facts["pos_embed"]]
    named = catalog.models().get(str(given.hint).split(".", 1)[0])
    if named is not None and named.embed_dim == sizes.embed_dim and _same_heads(named, facts):
        return named
    alike = [spec for spec in rows if _same_stem(stem, spec.stem_for(sizes.in_chans))]
    if alike:
        return alike[0]
    heads = {spec.num_heads for spec in rows}
    if rows and ("num_heads" in facts or len(heads) == 1):
        return rows[0]
    if "num_heads" not in facts:
        raise ArgumentError(_ask(sizes, "num_heads", "the number of attention heads"))
    kind = {"layernorm2d": "vit_s16_cvst"}.get(stem.norm, "vit_b16_convstem")
    return catalog.models()["vit_conv_small" if facts["pos_embed"] == "sincos2d" else kind]


def _same_trunk(sizes: Sizes, spec: ModelSpec) -> bool:
    mlp = int(spec.embed_dim * spec.mlp_ratio)
    return (spec.embed_dim, spec.depth, mlp) == (sizes.embed_dim, sizes.depth, sizes.mlp)


def _same_heads(spec: ModelSpec, facts: Mapping[str, Any]) -> bool:
    return facts.get("num_heads", spec.num_heads) == spec.num_heads


def _same_stem(stem: StemSizes, own: StemSpec) -> bool:
    norm = {"frozen_bn": "batchnorm2d"}.get(own.norm, own.norm)
    return (own.channels, own.kernel_sizes, norm) == (stem.channels, stem.kernel_sizes, stem.norm)


def _check_asked(sizes: Sizes, stem: StemSizes, spec: ModelSpec) -> None:
    if _same_trunk(sizes, spec) and len(spec.stem.channels) == len(stem.channels):
        return
    raise ConversionError(
        f"this checkpoint is not a {spec.name}: it has {sizes.depth} blocks of width {sizes.embed_dim}, MLP "
        f"{sizes.mlp} and stem channels {list(stem.channels)}; {spec.name} has {spec.depth} of {spec.embed_dim}, "
        f"{int(spec.embed_dim * spec.mlp_ratio)} and {list(spec.stem.channels)}"
    )


def _arguments(sizes: Sizes, stem: StemSizes, spec: ModelSpec, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the model differs from the registry's row."""
    strides = _strides(sizes, stem, spec, facts)
    own: dict[str, Any] = {
        **{name: getattr(spec, name) for name in ("embed_dim", "depth", "num_heads", "mlp_ratio", "img_size")},
        **_TRUNK_DEFAULTS,
        **spec.trunk_args,
        **spec.stem_for(sizes.in_chans).model_args,
    }
    wanted = {
        **_trunk_arguments(sizes, facts.get("num_heads", spec.num_heads), facts),
        "mlp_ratio": spec.mlp_ratio if _same_trunk(sizes, spec) else _mlp_ratio(sizes),
        "img_size": _image_size(sizes, math.prod(strides), facts),
        "stem_channels": list(stem.channels),
        "stem_strides": list(strides),
        "stem_kernel_sizes": list(stem.kernel_sizes),
        "stem_norm": stem.norm if stem.tracked or stem.norm != "batchnorm2d" else "frozen_bn",
        "stem_bias": stem.bias,
    }
    args = {name: value for name, value in wanted.items() if own.get(name) != value}
    if args.get("init_values") and own.get("init_values"):
        del args["init_values"]  # only whether there is LayerScale matters: its values are in the checkpoint
    return args


def _strides(sizes: Sizes, stem: StemSizes, spec: ModelSpec, facts: Mapping[str, Any]) -> tuple[int, ...]:
    if "stem_strides" in facts:
        return tuple(facts["stem_strides"])
    own = spec.stem_for(sizes.in_chans)
    if _same_stem(stem, own):
        return own.strides
    stems = [row.stem_for(sizes.in_chans) for row in catalog.models().values()]
    known = {other.strides for other in stems if _same_stem(stem, other)}
    if len(known) == 1:
        return known.pop()
    if facts.get("stem_stride"):
        return (facts["stem_stride"],) * len(stem.channels)
    raise ArgumentError(_ask(sizes, "stem_strides", f"the strides of the {len(stem.channels)} stem layers"))


_TRUNK_DEFAULTS: Mapping[str, Any] = {
    "act_layer": None,
    "class_token": True,
    "fc_norm": None,
    "global_pool": "token",
    "init_values": None,
    "no_embed_class": False,
    "norm_eps": 1e-6,
    "pre_norm": False,
    "qk_norm": False,
    "qkv_bias": True,
    "reg_tokens": 0,
}


def _trunk_arguments(sizes: Sizes, heads: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    pool = "map" if sizes.map_pool else "avg" if sizes.fc_norm or not sizes.class_token else "token"
    return {
        "act_layer": None if facts.get("act_layer", "gelu") == "gelu" else facts["act_layer"],
        "embed_dim": sizes.embed_dim,
        "depth": sizes.depth,
        "num_heads": heads,
        "mlp_ratio": _mlp_ratio(sizes),
        "class_token": sizes.class_token,
        "fc_norm": False if pool == "avg" and not sizes.fc_norm else None,
        "global_pool": pool,
        "init_values": 1e-5 if sizes.layer_scale else None,
        "no_embed_class": sizes.prefix_tokens > 0 and not sizes.class_position,
        "norm_eps": facts.get("norm_eps", 1e-6),
        "pre_norm": sizes.pre_norm,
        "qk_norm": sizes.qk_norm,
        "qkv_bias": sizes.qkv_bias,
        "reg_tokens": sizes.reg_tokens,
    }


def _mlp_ratio(sizes: Sizes) -> float:
    """Return the ratio that timm rounds down to the width of this MLP."""
    ratio = sizes.mlp / sizes.embed_dim
    return ratio if int(sizes.embed_dim * ratio) == sizes.mlp else (sizes.mlp + 0.5) / sizes.embed_dim


def _image_size(sizes: Sizes, patch: int, facts: Mapping[str, Any]) -> Any:
    size = facts.get("img_size")
    return size if size is not None else round(sizes.patch_tokens**0.5) * patch


def _plain(sizes: Sizes, layout: Layout, asked: str | None, facts: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments of a plain ViT."""
    from timm.models import is_model

    size = _image_size(sizes, sizes.patch_size, facts)
    if asked is not None:
        if not is_model(asked):
            raise ArgumentError(f"timm has no architecture {asked!r}; `timm.list_models('vit_*')` lists its ViTs")
        return asked, {"img_size": size}
    act = facts.get("act_layer", "gelu")
    words = {"patch": sizes.patch_size, "act": "_quickgelu" if act == "quick_gelu" else ""}
    trunks = {**TRUNKS, **facts.get("trunks", {})}
    names = {
        name: (heads, image)
        for (width, depth, heads), word in trunks.items()
        for image in (size, 224, 256)
        if (width, depth) == (sizes.embed_dim, sizes.depth)
        and is_model(name := layout.names.format(size=word, img=image, **words))
    }
    known = {heads for heads, _ in names.values()}
    known = known or {heads for width, depth, heads in trunks if (width, depth) == (sizes.embed_dim, sizes.depth)}
    heads = _plain_heads(sizes, facts, known)
    named = sorted(names, key=lambda name: (names[name][0] != heads, names[name][1] != size))
    if named and _usual(sizes, layout):
        usual, image = names[named[0]]
        args = {"num_heads": heads} if heads != usual else {}
        args |= {} if "{img}" in layout.names and image == size else {"img_size": size}
        return named[0], {**args, **_act(act, layout)}
    base = facts.get("gated_base" if sizes.gated_mlp else "base", "vit_base_patch16_224").format(**words)
    return base, {**_plain_arguments(sizes, heads, size, facts), **_act(act, layout)}


def _act(act: str, layout: Layout) -> dict[str, str]:
    """Return the argument for the activation, where the name does not have it."""
    named = act == "quick_gelu" if "{act}" in layout.names else False
    return {} if act == "gelu" or named else {"act_layer": act}


def _plain_heads(sizes: Sizes, facts: Mapping[str, Any], known: set[int]) -> int:
    if sizes.head_dim:
        return sizes.embed_dim // sizes.head_dim
    if "num_heads" in facts:
        return int(facts["num_heads"])
    if len(known) != 1:
        raise ArgumentError(_ask(sizes, "num_heads", "the number of attention heads"))
    return known.pop()


def _usual(sizes: Sizes, layout: Layout) -> bool:
    """Tell whether the model has the tokens, norms and pooling that its name stands for."""
    usual = {"class_token": True, "class_position": True, "reg_tokens": 0, "qk_norm": False, "qkv_bias": True,
             "layer_scale": False, "pre_norm": False, "fc_norm": False, "map_pool": False,
             "gated_mlp": (sizes.embed_dim, sizes.depth) in {key[:2] for key in layout.facts.get("trunks", {})},
             **layout.facts.get("usual", {})}  # fmt: skip
    return all(getattr(sizes, name) == value for name, value in usual.items())


def _plain_arguments(sizes: Sizes, heads: int, size: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    args = _trunk_arguments(sizes, heads, facts)
    del args["norm_eps"], args["act_layer"]  # a norm class no config can hold; the activation has its own rule
    changed = {name: value for name, value in args.items() if _TRUNK_DEFAULTS.get(name, object()) != value}
    return {**changed, "patch_size": sizes.patch_size, "img_size": size}


def _ask(sizes: Sizes, name: str, what: str) -> str:
    names = sorted({name, "architecture"}, reverse=True)
    return (
        f"{what} cannot be told from this checkpoint ({sizes.depth} blocks of width {sizes.embed_dim}): pass "
        f"{' or '.join(f'{n}=' for n in names)} ({', '.join('--' + n.replace('_', '-') for n in names)})"
    )
