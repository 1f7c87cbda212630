"""The shapes that every tensor of a ViT must have, given its sizes, and where a state dict differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from convstem.layouts.sizes import Shapes, Sizes, is_square
from convstem.layouts.templates import fill
from convstem.layouts.timm import PATCHIFY, STEM, TRUNK, Key


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


def mismatches(shapes: Shapes, sizes: Sizes, square: bool) -> dict[str, str]:
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
    if square and not is_square(sizes.patch_tokens):
        prefix = f"with {sizes.prefix_tokens} class and register tokens" if sizes.prefix_tokens else "no class token"
        wrong["pos_embed"] = f"{sizes.tokens} positions are no square grid, {prefix}: is a token missing or surplus?"
    return wrong
