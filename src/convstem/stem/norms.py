"""A stem's norms: folding BatchNorm into convolutions, adding it to a checkpoint, initial values for each norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from convstem.errors import ArgumentError, CheckpointError, UnsupportedModelError, warn
from convstem.upstream import torch_has_hooks, torch_loads_strictly

BN_EPS = 1e-5
"""BatchNorm's epsilon in both hosts; state dicts do not store it."""

_BATCHNORM = ("weight", "bias", "running_mean", "running_var")


def layer_norm(norm: type[nn.Module], eps: float, given: object) -> Callable[..., nn.Module]:
    """Return a trunk's LayerNorm class with this epsilon.

    Raises:
        ArgumentError: the epsilon is not positive, or a norm layer is ``given`` as well.
    """
    if given is not None or not (isinstance(eps, (int, float)) and eps > 0):
        what = f"norm_layer={given!r} as well: give one of them" if given is not None else f"norm_eps={eps!r}"
        raise ArgumentError(f"norm_eps must be a positive number, for the trunk's LayerNorm; got {what}")
    return partial(norm, eps=eps)


def fold_batchnorm(
    weight: Tensor, bias: Tensor | None, norm: Mapping[str, Tensor], eps: float = BN_EPS
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution that computes a convolution and its BatchNorm in eval mode.

    Args:
        weight: of the convolution, [out_channels, in_channels, kernel, kernel].
        bias: [out_channels], or None for zero.
        norm: ``weight``, ``bias``, ``running_mean`` and ``running_var`` of the BatchNorm, [out_channels] each.
        eps: of the BatchNorm.
    """
    gain, shift, mean, variance = (_wide(norm[name]) for name in _BATCHNORM)
    scale = gain / (variance + eps).sqrt()
    start = -mean if bias is None else _wide(bias) - mean
    folded = _wide(weight) * scale[:, None, None, None]
    return folded.to(weight), (shift + start * scale).to(weight)


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64 on the CPU; some devices lack that type, such as Apple's and Intel's."""
    return tensor.to("cpu", torch.float64)


def stem_norm(stem: nn.Module) -> str:
    """Return the ``stem_norm`` of a stem of either host; a frozen BatchNorm counts as ``batchnorm2d``."""
    return _kind(next(_layers(stem, ""))[-1])


@torch.no_grad()
def fold_stem(stem: nn.Module) -> None:
    """Fold the BatchNorm of a stem of either host into its convolutions, in place.

    Raises:
        UnsupportedModelError: SyncBatchNorm, hooks or parametrizations.
    """
    _check_foldable(stem)
    for _, conv, path, norm in _layers(stem, ""):
        tensors = {name: getattr(norm, name) for name in _BATCHNORM}
        weight, bias = fold_batchnorm(conv.weight, conv.bias, tensors, norm.eps)
        trainable = conv.weight.requires_grad
        conv.weight, conv.bias = nn.Parameter(weight, trainable), nn.Parameter(bias, trainable)
        parent, _, name = path.rpartition(".")
        layer = stem.get_submodule(parent)
        if isinstance(layer, nn.Sequential):
            del layer[int(name)]  # torchvision's activation is a separate layer and moves up
        else:
            setattr(layer, name, norm.act)


def _check_foldable(stem: nn.Module) -> None:
    for name, module in stem.named_modules():
        found = [
            ("SyncBatchNorm, with statistics shared by processes", isinstance(module, nn.SyncBatchNorm)),
            ("hooks, which would see other values", torch_has_hooks(module)),
            ("parametrizations, which a folded weight cannot keep", is_parametrized(module)),
        ]
        what = next((text for text, present in found if present), None)
        if what:
            raise UnsupportedModelError(
                f"the stem of this model has {what} (at {name or 'its root'}): load its weights into a fresh model "
                "and fold that, or remove them first"
            )


@torch.no_grad()
def fit_norm(stem: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str = "", *_: Any) -> None:
    """Change a checkpoint in place to the norm of a stem, if eval-mode outputs stay the same.

    For a stem without a norm, the checkpoint's BatchNorm is folded into its convolutions. For a stem with BatchNorm,
    the biases of a checkpoint without a norm become a BatchNorm with mean 0 and variance 1. Every stem of both hosts
    has this as a load hook (``register_load_state_dict_pre_hook``).

    Args:
        stem: timm's ``ConvStem``, or torchvision's ``conv_proj``.
        state_dict: the checkpoint.
        prefix: of the stem's keys in it.

    Raises:
        CheckpointError: only one of the two has LayerNorm.

    Warns:
        UserWarning: the norm was changed.
    """
    said: dict[str, None] = {}  # an ordered set
    for conv_key, conv, norm_key, norm in _layers(stem, prefix):
        change = _norm_of(state_dict, norm_key), _kind(norm)
        if change[0] == change[1] or not _is_whole(state_dict, conv_key, norm_key, change[0]):
            continue
        if change in _PARTS and not torch_loads_strictly():
            continue
        if "layernorm2d" in change:
            raise CheckpointError(
                f"the stem of this checkpoint has stem_norm {change[0]}, the model's has {change[1]}, and neither can "
                f"become the other: create the model with stem_norm={change[0]!r}"
            )
        apply, sentence = _CHANGES[change]
        apply(state_dict, conv_key, norm_key, conv.bias is not None)
        said[sentence] = None
    for sentence in said:
        warn(f"{sentence}; eval-mode outputs stay the same")


def _layers(stem: Any, prefix: str) -> Iterator[tuple[str, Any, str, Any]]:
    """Yield (key, convolution, key, next module) for each layer before the last convolution."""
    for name, layer in list(stem.named_children())[:-1]:
        (conv_name, conv), (norm_name, norm), *_ = layer.named_children()
        yield f"{prefix}{name}.{conv_name}", conv, f"{prefix}{name}.{norm_name}", norm


def _kind(norm: nn.Module) -> str:
    """Return the ``stem_norm`` of the module after a convolution; a frozen BatchNorm counts as ``batchnorm2d``."""
    return "batchnorm2d" if hasattr(norm, "running_mean") else "layernorm2d" if hasattr(norm, "weight") else "none"


def _norm_of(state_dict: Mapping[str, Tensor], key: str) -> str:
    if f"{key}.running_mean" in state_dict:
        return "batchnorm2d"
    return "layernorm2d" if f"{key}.weight" in state_dict else "none"


def _is_whole(state_dict: Mapping[str, Tensor], conv: str, norm: str, kind: str) -> bool:
    """Return whether a layer has all its tensors, of matching lengths; if not, torch reports what is wrong."""
    needed = [f"{conv}.weight", *(f"{norm}.{name}" for name in _BATCHNORM if kind == "batchnorm2d")]
    needed += [f"{conv}.bias"] if kind == "none" else []
    shapes = [getattr(state_dict.get(key), "shape", None) for key in needed]
    return None not in shapes and len({shape[:1] for shape in shapes if shape is not None}) == 1


def _remove_batchnorm(state_dict: MutableMapping[str, Tensor], conv: str, norm: str, conv_bias: bool) -> None:
    prefix = f"{norm}."
    tensors = {key.removeprefix(prefix): state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    folded = fold_batchnorm(state_dict[f"{conv}.weight"], state_dict.get(f"{conv}.bias"), tensors)
    state_dict[f"{conv}.weight"], state_dict[f"{conv}.bias"] = folded


def _add_batchnorm(state_dict: MutableMapping[str, Tensor], conv: str, norm: str, conv_bias: bool) -> None:
    bias = state_dict[f"{conv}.bias"]
    zeros, ones = torch.zeros_like(bias), torch.ones_like(bias)
    if not conv_bias:
        del state_dict[f"{conv}.bias"]
    state_dict[f"{norm}.weight"] = (_wide(ones) + BN_EPS).sqrt().to(bias)
    state_dict[f"{norm}.bias"] = zeros if conv_bias else bias
    state_dict[f"{norm}.running_mean"] = zeros.clone()
    state_dict[f"{norm}.running_var"] = ones


_CHANGES = {
    ("batchnorm2d", "none"): (
        _remove_batchnorm,
        "the BatchNorm of this checkpoint's stem was folded into the convolutions: the model has stem_norm='none'",
    ),
    ("none", "batchnorm2d"): (
        _add_batchnorm,
        "this checkpoint's stem has no norm, but the model's has BatchNorm: it starts at mean 0 and variance 1, and "
        "training will move them",
    ),
}
"""(Norm of the checkpoint, norm of the model) -> function that changes the checkpoint, and what the user is told."""

_PARTS = (("layernorm2d", "batchnorm2d"), ("none", "layernorm2d"))
"""Pairs that also arise from a partial checkpoint of the same model: without the statistics, or without the norm."""


def init_stem(stem: nn.Module, norm: str) -> None:
    """Initialise a stem's convolutions in place, the same way for both hosts.

    Layers before a norm get variance ``2 / fan_out``. Before a frozen BatchNorm or no norm they get ``2 / fan_in``,
    which preserves the variance from layer to layer. The last convolution gets ``1 / fan_out``. Biases are zero.

    Args:
        stem: module with the convolutions.
        norm: the stem's ``stem_norm``.

    Source: pycls/models/vit.py, the paper's own code; He et al., arXiv 1502.01852, section 2.2.
    """
    mode: Literal["fan_in", "fan_out"] = "fan_in" if norm in ("frozen_bn", "none") else "fan_out"
    convs = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        if conv is convs[-1]:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="linear")
        else:
            nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
