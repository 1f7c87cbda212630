"""Names a plain ViT, without a conv stem: timm's name and the arguments where the model differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convstem.errors import ArgumentError
from convstem.layouts.arguments import TRUNK_DEFAULTS, ask_for, image_size, trunk_arguments
from convstem.layouts.rows import Layout
from convstem.layouts.sizes import Sizes

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


def name_plain(sizes: Sizes, layout: Layout, asked: str | None, facts: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments of a plain ViT.

    Args:
        sizes: what the shapes say.
        layout: where the checkpoint comes from.
        asked: timm's name, if the user gives it.
        facts: what shapes do not say, by timm's argument.

    Raises:
        ArgumentError: timm has no such name, or the number of heads cannot be told.
    """
    from timm.models import is_model

    size = image_size(sizes, sizes.patch_size, facts)
    if asked is not None:
        if not is_model(asked):
            raise ArgumentError(f"timm has no architecture {asked!r}; `timm.list_models('vit_*')` lists its ViTs")
        return asked, {"img_size": size}
    act = facts.get("act_layer", "gelu")
    words = {"patch": sizes.patch_size, "act": "_quickgelu" if act == "quick_gelu" else ""}
    trunks = {**TRUNKS, **facts.get("trunks", {})}
    names = {  # timm has every size under its own image size, or under one of the usual two
        name: (heads, image)
        for (width, depth, heads), word in trunks.items()
        for image in (size, 224, 256)
        if (width, depth) == (sizes.embed_dim, sizes.depth)
        and is_model(name := layout.names.format(size=word, img=image, **words))
    }
    known = {heads for heads, _ in names.values()}
    known = known or {heads for width, depth, heads in trunks if (width, depth) == (sizes.embed_dim, sizes.depth)}
    heads = _heads(sizes, facts, known)
    # the right number of heads counts more than the right image size: the latter is an argument of every model
    named = sorted(names, key=lambda name: (names[name][0] != heads, names[name][1] != size))
    if named and _usual(sizes, layout):
        usual, image = names[named[0]]
        args = {"num_heads": heads} if heads != usual else {}
        args |= {} if "{img}" in layout.names and image == size else {"img_size": size}
        return named[0], {**args, **_act(act, layout)}
    base = facts.get("gated_base" if sizes.gated_mlp else "base", "vit_base_patch16_224").format(**words)
    return base, {**_arguments(sizes, heads, size, facts), **_act(act, layout)}


def _act(act: str, layout: Layout) -> dict[str, str]:
    """Return the argument for the activation, where the name does not have it."""
    named = "{act}" in layout.names and act == "quick_gelu"
    return {} if act == "gelu" or named else {"act_layer": act}


def _heads(sizes: Sizes, facts: Mapping[str, Any], known: set[int]) -> int:
    if sizes.head_dim:
        return sizes.embed_dim // sizes.head_dim
    if "num_heads" in facts:
        return int(facts["num_heads"])
    if len(known) != 1:
        raise ArgumentError(ask_for(sizes, "num_heads", "the number of attention heads"))
    return known.pop()


def _usual(sizes: Sizes, layout: Layout) -> bool:
    """Tell whether the model has the tokens, norms and pooling that its name stands for."""
    usual = {"class_token": True, "class_position": True, "reg_tokens": 0, "qk_norm": False, "qkv_bias": True,
             "layer_scale": False, "pre_norm": False, "fc_norm": False, "map_pool": False,
             "gated_mlp": (sizes.embed_dim, sizes.depth) in {key[:2] for key in layout.facts.get("trunks", {})},
             **layout.facts.get("usual", {})}  # fmt: skip
    return all(getattr(sizes, name) == value for name, value in usual.items())


def _arguments(sizes: Sizes, heads: int, size: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    args = trunk_arguments(sizes, heads, facts)
    del args["norm_eps"], args["act_layer"]  # a norm class no config can hold; the activation has its own rule
    changed = {name: value for name, value in args.items() if TRUNK_DEFAULTS.get(name, object()) != value}
    return {**changed, "patch_size": sizes.patch_size, "img_size": size}
