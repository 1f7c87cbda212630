"""Loads a state dict with a plain patch embedding into a stem: transplants it, or says why that is not possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from convstem.errors import ArgumentError, warn
from convstem.layouts.diagnosis import patchify_sentence
from convstem.registry.records import IMAGENET_MEAN, IMAGENET_STD
from convstem.registry.stem_spec import StemSpec
from convstem.stem.carried import TransplantReport, normalised_range
from convstem.stem.carry import carry


def carry_on_load(
    embed: Any, state_dict: MutableMapping[str, Tensor], prefix: str, metadata: Any, strict: bool, *lists: list[str]
) -> None:
    """Transplant the patch embedding of a state dict without a stem, in place; a load hook of timm's stems.

    Warns:
        UserWarning: it was transplanted.
    """
    weight = state_dict.get(f"{prefix}proj.weight")
    if weight is None or has_stem(state_dict, prefix):
        return
    try:
        carry_patch_embedding(embed, state_dict, prefix)
    except ArgumentError as error:
        lists[-1].append(f"{patchify_sentence(weight)} {error}")  # the last list is error_msgs
    else:
        _tell()


def has_stem(state_dict: Mapping[str, Any], prefix: str) -> bool:
    """Return whether a state dict has a timm stem under this prefix, the patch embedding's."""
    return any(key.startswith(f"{prefix}backbone.") for key in state_dict)


def carry_patch_embedding(embed: Any, state_dict: MutableMapping[str, Tensor], prefix: str) -> TransplantReport:
    """Replace a patch embedding in a state dict by a stem that computes the same, in place; return the report.

    Args:
        embed: a ``ConvStemEmbed``.
        state_dict: holds ``proj.weight`` [embed_dim, in_chans, patch, patch] and usually ``proj.bias``. If the stem's
            patch is larger than the trunk's own, the kernel is resized first.
        prefix: prefix of the embedding's keys.

    Raises:
        ArgumentError: patch size, width or channels are not the stem's, or the stem is too narrow.
    """
    from timm.layers import resample_patch_embed  # here: torchvision's models use this file without timm

    weight, bias = state_dict[f"{prefix}proj.weight"], state_dict.get(f"{prefix}proj.bias")
    shape = tuple(embed.proj.weight.shape)
    if embed.resized_from and weight.shape[2:] == (embed.resized_from,) * 2:
        weight = resample_patch_embed(weight, shape[2:])
    carried, report = carried_stem(weight, bias, embed.stem_spec, shape, embed.lowest)
    for key in (f"{prefix}proj.weight", f"{prefix}proj.bias"):
        state_dict.pop(key, None)
    state_dict.update({f"{prefix}backbone.{key}": tensor for key, tensor in carried.items()})
    return report


def carried_stem(
    weight: Tensor, bias: Tensor | None, stem: StemSpec, expected: tuple[int, ...], low: Sequence[float] | None
) -> tuple[dict[str, Tensor], TransplantReport]:
    """Return the state dict of a timm stem that computes a patch embedding of the expected shape, and the report.

    Raises:
        ArgumentError: another shape, or a stem that is too narrow.
    """
    if tuple(weight.shape) != expected:
        raise ArgumentError(f"its patch embedding is {list(weight.shape)}; this stem's would be {list(expected)}")
    return carry(weight, bias, stem, low, stride=stem.patch_size)


def _tell() -> None:
    warn(
        "this checkpoint has a patch embedding and no conv stem: it was transplanted into the model's stem; eval-mode "
        "outputs equal the plain (patchify) ViT's"
    )


def torchvision_carrier(stem: StemSpec, embed_dim: int, in_chans: int = 3) -> Callable[..., None]:
    """Return the same load hook for torchvision's ``conv_proj``; its images have ImageNet's mean and std.

    Args:
        stem: the stem.
        embed_dim: width of the trunk.
        in_chans: input channels.
    """
    shape = (embed_dim, in_chans, stem.patch_size, stem.patch_size)
    known = normalised_range(IMAGENET_MEAN, IMAGENET_STD, in_chans)
    return partial(_carry_into_torchvision, stem, shape, known and known[0])


def _carry_into_torchvision(
    spec: StemSpec,
    shape: tuple[int, ...],
    low: Sequence[float] | None,
    stem: nn.Module,
    state_dict: MutableMapping[str, Tensor],
    prefix: str,
    metadata: Any,
    strict: bool,
    *lists: list[str],
) -> None:
    weight, bias = (state_dict.get(f"{prefix}{name}") for name in ("weight", "bias"))
    if weight is None or any(f"{prefix}{name}.weight" in state_dict for name in _names(stem).values()):
        return
    try:
        carried, _ = carried_stem(weight, bias, spec, shape, low)
    except ArgumentError as error:
        lists[-1].append(f"{patchify_sentence(weight)} {error}")
        return
    for name in ("weight", "bias"):
        state_dict.pop(f"{prefix}{name}", None)
    state_dict.update({f"{prefix}{key}": tensor for key, tensor in under_own_keys(stem, carried).items()})
    _tell()


def under_own_keys(stem: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a timm stem with the keys of the given stem, timm's or torchvision's."""
    names = _names(stem)
    parts = {key: key.rpartition(".") for key in state}
    return {f"{names[layer]}.{name}": state[key] for key, (layer, _, name) in parts.items()}


def _names(stem: nn.Module) -> dict[str, str]:
    """Return the given stem's names for timm's layers, ``{i}.conv`` and ``{i}.bn``."""
    *layers, (last, module) = stem.named_children()
    names = {f"{len(layers)}.conv": last if isinstance(module, nn.Conv2d) else f"{last}.conv"}
    for index, (name, layer) in enumerate(layers):
        (conv, _), (norm, _), *_ = layer.named_children()
        names |= {f"{index}.conv": f"{name}.{conv}", f"{index}.bn": f"{name}.{norm}"}
    return names
