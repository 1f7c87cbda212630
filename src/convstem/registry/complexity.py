"""Parameters and multiply-adds of an architecture, counted from its row. No torch in this file."""

from __future__ import annotations

from convstem.registry.records import ModelSpec

_NORM_PARAMS = {"batchnorm2d": 2, "frozen_bn": 0, "layernorm2d": 2, "none": 0}
"""Trainable parameters of a stem's norm, per channel."""


def num_params(spec: ModelSpec, num_classes: int | None = None, img_size: int | None = None) -> int:
    """Return the number of trainable parameters.

    Args:
        spec: the architecture.
        num_classes: size of the head; default: the architecture's own. 0 counts no head.
        img_size: in pixels; default: the architecture's own.
    """
    dim, classes = spec.embed_dim, spec.num_classes if num_classes is None else num_classes
    hidden = int(dim * spec.mlp_ratio)
    attention = 4 * dim * dim + 4 * dim
    mlp = 2 * dim * hidden + hidden + dim
    scales = 2 * dim if spec.trunk_args.get("init_values") else 0
    blocks = spec.depth * (attention + mlp + scales + 4 * dim)
    positions = _tokens(spec, img_size) + (0 if spec.trunk_args.get("no_embed_class") else 1)
    embeddings = dim + (positions * dim if spec.pos_embed == "learn" else 0)
    return _stem_params(spec) + embeddings + blocks + 2 * dim + (dim + 1) * classes


def macs(spec: ModelSpec, num_classes: int | None = None, img_size: int | None = None) -> int:
    """Return the multiply-adds of one image: convolutions, linear layers and attention products.

    Args:
        spec, num_classes, img_size: see ``num_params``.
    """
    dim, tokens = spec.embed_dim, _tokens(spec, img_size) + 1
    classes = spec.num_classes if num_classes is None else num_classes
    hidden = int(dim * spec.mlp_ratio)
    block = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * tokens * tokens * dim
    return _stem_macs(spec, img_size) + spec.depth * block + dim * classes


def _tokens(spec: ModelSpec, img_size: int | None) -> int:
    return ((img_size or spec.img_size) // spec.patch_size) ** 2


def _stem_params(spec: ModelSpec) -> int:
    stem, inputs, total = spec.stem, 3, 0
    for channels, kernel in zip(stem.channels, stem.kernel_sizes, strict=True):
        total += kernel * kernel * inputs * channels + channels * (stem.bias + _NORM_PARAMS[stem.norm])
        inputs = channels
    return total + inputs * spec.embed_dim + spec.embed_dim


def _stem_macs(spec: ModelSpec, img_size: int | None) -> int:
    stem, inputs, size, total = spec.stem, 3, img_size or spec.img_size, 0
    for channels, kernel, stride in zip(stem.channels, stem.kernel_sizes, stem.strides, strict=True):
        size = -(-size // stride)
        total += kernel * kernel * inputs * channels * size * size
        inputs = channels
    return total + inputs * spec.embed_dim * size * size
