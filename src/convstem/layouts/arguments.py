"""The arguments with which timm builds a trunk of some sizes; the same for a plain ViT and for one on a conv stem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convstem.layouts.sizes import Sizes

TRUNK_DEFAULTS: Mapping[str, Any] = {
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


def trunk_arguments(sizes: Sizes, heads: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's arguments of a trunk.

    Args:
        sizes: what the shapes say.
        heads: of attention.
        facts: what shapes do not say, by timm's argument.
    """
    pool = "map" if sizes.map_pool else "avg" if sizes.fc_norm or not sizes.class_token else "token"
    return {
        "act_layer": None if facts.get("act_layer", "gelu") == "gelu" else facts["act_layer"],
        "embed_dim": sizes.embed_dim,
        "depth": sizes.depth,
        "num_heads": heads,
        "mlp_ratio": mlp_ratio(sizes),
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


def mlp_ratio(sizes: Sizes) -> float:
    """Return the ratio that timm rounds down to the width of this MLP."""
    ratio = sizes.mlp / sizes.embed_dim
    return ratio if int(sizes.embed_dim * ratio) == sizes.mlp else (sizes.mlp + 0.5) / sizes.embed_dim


def image_size(sizes: Sizes, patch: int, facts: Mapping[str, Any]) -> Any:
    """Return the image size that is stated, or that of a square grid of patches."""
    size = facts.get("img_size")
    return size if size is not None else round(sizes.patch_tokens**0.5) * patch


def ask_for(sizes: Sizes, name: str, what: str) -> str:
    """Return the sentence that asks for argument ``name``, or for the architecture, which would tell it."""
    names = sorted({name, "architecture"}, reverse=True)
    return (
        f"{what} cannot be told from this checkpoint ({sizes.depth} blocks of width {sizes.embed_dim}): pass "
        f"{' or '.join(f'{n}=' for n in names)} ({', '.join('--' + n.replace('_', '-') for n in names)})"
    )
