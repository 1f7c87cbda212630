"""Parameters and multiply-adds of an architecture, counted from its row. No torch in this file."""

from __future__ import annotations

from dataclasses import replace

from convstem.registry.records import Architecture, ModelSpec, TrunkSpec

_NORM_PARAMS = {"batchnorm2d": 2, "frozen_bn": 0, "layernorm2d": 2, "none": 0}
"""Trainable parameters of a stem's norm, per channel."""


def num_params(spec: Architecture) -> int:
    """Return the number of trainable parameters, at the architecture's image size and with its head."""
    return stem_params(spec) + (_trunk_params(spec) if isinstance(spec, ModelSpec) else _measured(spec).trunk_params)


def macs(spec: Architecture) -> int:
    """Return the multiply-adds of one image: convolutions, linear layers and attention products."""
    return stem_macs(spec) + (_trunk_macs(spec) if isinstance(spec, ModelSpec) else _measured(spec).trunk_macs)


def stem_params(spec: Architecture) -> int:
    """Return the number of parameters of an architecture's stem."""
    stem = spec.stem
    extra = _NORM_PARAMS[stem.norm] + (1 if stem.bias else 0)
    layers = sum((layer.kernel_size**2 * layer.in_chans + extra) * layer.channels for layer in stem.layers())
    return layers + (stem.last_kernel_size**2 * stem.channels[-1] + 1) * spec.embed_dim


def stem_macs(spec: Architecture) -> int:
    """Return the multiply-adds of an architecture's stem for one image."""
    in_chans, *size = spec.input_size
    layers = spec.stem.layers(size, in_chans)
    last = replace(spec.stem.last_layer(spec.embed_dim, size), in_chans=layers[-1].channels)
    return sum(
        layer.kernel_size**2 * layer.in_chans * layer.channels * layer.height * layer.width for layer in (*layers, last)
    )


def _measured(spec: Architecture) -> TrunkSpec:
    assert isinstance(spec, TrunkSpec)
    return spec


def _trunk_params(spec: ModelSpec) -> int:
    dim, hidden = spec.embed_dim, int(spec.embed_dim * spec.mlp_ratio)
    attention = 4 * dim * dim + 4 * dim
    mlp = 2 * dim * hidden + hidden + dim
    scales = 2 * dim if spec.trunk_args.get("init_values") else 0
    blocks = spec.depth * (attention + mlp + scales + 4 * dim)
    positions = _patches(spec) + (0 if spec.trunk_args.get("no_embed_class") else 1)
    embeddings = dim + (positions * dim if spec.pos_embed == "learn" else 0)
    norm = 2 * dim if spec.trunk_args.get("use_post_transformer_norm", True) else 0
    return embeddings + blocks + norm + (dim + 1) * spec.num_classes


def _trunk_macs(spec: ModelSpec) -> int:
    dim, hidden, tokens = spec.embed_dim, int(spec.embed_dim * spec.mlp_ratio), _patches(spec) + 1
    block = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * tokens * tokens * dim
    return spec.depth * block + dim * spec.num_classes


def _patches(spec: Architecture) -> int:
    _, height, width = spec.input_size
    return (height // spec.patch_size) * (width // spec.patch_size)
