"""Names the architecture of a checkpoint: from its sizes, from what its layout and its file say, or from the user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from convstem.errors import ArgumentError, ConversionError
from convstem.layouts.arguments import TRUNK_DEFAULTS, ask_for, image_size, mlp_ratio, trunk_arguments
from convstem.layouts.given import Given
from convstem.layouts.plain import name_plain
from convstem.layouts.rows import Layout
from convstem.layouts.sizes import Sizes, StemSizes
from convstem.registry import catalog
from convstem.registry.records import ModelSpec
from convstem.registry.stem_spec import StemSpec


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
        raise ArgumentError(ask_for(sizes, "architecture", "the architecture, whose MLP is gated (SwiGLU),"))
    if sizes.stem is None:
        return name_plain(sizes, layout, given.architecture, facts)
    spec = _spec(sizes, sizes.stem, layout, given, facts)
    return spec.name, _arguments(sizes, sizes.stem, spec, facts)


def _spec(sizes: Sizes, stem: StemSizes, layout: Layout, given: Given, facts: Mapping[str, Any]) -> ModelSpec:
    """Return the registry's row that fits best; where the model differs from it, its arguments say so."""
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
        raise ArgumentError(ask_for(sizes, "num_heads", "the number of attention heads"))
    # No row has this trunk: any row of the right model class will do, for its arguments override every size.
    kind = "vit_s16_cvst" if stem.norm == "layernorm2d" else "vit_b16_convstem"
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
        **TRUNK_DEFAULTS,
        **spec.trunk_args,
        **spec.stem_for(sizes.in_chans).model_args,
    }
    wanted = {
        **trunk_arguments(sizes, facts.get("num_heads", spec.num_heads), facts),
        "mlp_ratio": spec.mlp_ratio if _same_trunk(sizes, spec) else mlp_ratio(sizes),
        "img_size": image_size(sizes, math.prod(strides), facts),
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
    raise ArgumentError(ask_for(sizes, "stem_strides", f"the strides of the {len(stem.channels)} stem layers"))
