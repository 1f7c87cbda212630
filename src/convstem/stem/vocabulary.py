"""Converts ``StemSpec`` to and from torchvision's ``ConvStemConfig``, and picks a model's stem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig
from torchvision.ops import FrozenBatchNorm2d

from convstem.errors import ArgumentError, ArgumentTypeError
from convstem.registry import catalog
from convstem.registry.records import ModelSpec
from convstem.registry.stem_spec import StemSpec, default_stem, last_stride_in_words

StemLike: TypeAlias = str | StemSpec | Sequence[int] | Sequence[ConvStemConfig]


# Names that both hosts know. A torchvision stem has no bias before a norm and cannot express LayerNorm2d.
_TORCHVISION_NORMS: dict[str, type[nn.Module] | None] = {
    "batchnorm2d": nn.BatchNorm2d,
    "frozen_bn": FrozenBatchNorm2d,
    "none": None,
}


_TORCHVISION_ACTS: dict[str, type[nn.Module] | None] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def as_stem_spec(stem: StemLike) -> StemSpec:
    """Return the stem of an architecture name, a ``StemSpec``, channels, or a list of ``ConvStemConfig``.

    Channels stand for stride-2 layers without a norm, before a 1x1; ``ConvStemConfig`` is torchvision's.

    Raises:
        UnknownModelError: unknown architecture name.
        ArgumentTypeError: any other type.
        ArgumentError: a ``ConvStemConfig`` has no counterpart.
    """
    if isinstance(stem, StemSpec):
        return stem
    if isinstance(stem, str):
        return catalog.find(stem).stem
    layers: Sequence[Any] = stem if isinstance(stem, Sequence) else ()
    if layers and all(isinstance(layer, ConvStemConfig) for layer in layers):
        return from_torchvision(layers)
    if layers and all(isinstance(layer, int) for layer in layers):
        return StemSpec(tuple(layers), norm="none")
    raise ArgumentTypeError(
        "a stem is an architecture name, a convstem.StemSpec, the channels of its layers such as (24, 96, 384, 768), "
        f"or a list of torchvision ConvStemConfig; got {stem!r}"
    )


def from_torchvision(configs: Sequence[ConvStemConfig]) -> StemSpec:
    """Return the ``StemSpec`` of a list of torchvision ``ConvStemConfig``.

    Raises:
        ArgumentError: the layers differ in norm or activation, or a norm, activation or kernel has no counterpart.

    Source: torchvision/models/vision_transformer.py, ``ConvStemConfig``.
    """
    spec = StemSpec(
        channels=tuple(config.out_channels for config in configs),
        strides=tuple(config.stride for config in configs),
        kernel_sizes=tuple(config.kernel_size for config in configs),
        norm=_name_of("norm_layer", {config.norm_layer for config in configs}, _TORCHVISION_NORMS),
        act=_name_of("activation_layer", {config.activation_layer for config in configs}, _TORCHVISION_ACTS),
    )
    if not spec.fits_torchvision:
        raise ArgumentError(f"this ConvStemConfig cannot be built: {spec.beyond_torchvision}; use odd kernels")
    return spec


def _name_of(field: str, classes: set[Any], names: Mapping[str, type[nn.Module] | None]) -> str:
    matches = [name for name, cls in names.items() if classes == {cls}]
    if not matches:
        raise ArgumentError(
            f"{field} must be the same in every ConvStemConfig and one of "
            f"{_class_names(names.values())}; got {_class_names(classes)}"
        )
    return matches[0]


def _class_names(classes: Iterable[Any]) -> str:
    return ", ".join(sorted(getattr(cls, "__name__", repr(cls)) for cls in classes))


def to_torchvision(stem: StemSpec) -> list[ConvStemConfig]:
    """Return a stem as a list of torchvision ``ConvStemConfig``.

    Raises:
        ArgumentError: torchvision cannot express the stem; the message says what it can.
    """
    if not stem.fits_torchvision:
        raise ArgumentError(
            f"torchvision's ConvStemConfig has stem_norm {', '.join(sorted(_TORCHVISION_NORMS))}, stem_bias=False "
            f"before a norm, odd kernels, and a 1x1 at the end; got {stem.beyond_torchvision}: build this model in timm"
        )
    norm, act = _TORCHVISION_NORMS[stem.norm], _TORCHVISION_ACTS[stem.act]
    return [ConvStemConfig(layer.channels, layer.kernel_size, layer.stride, norm, act) for layer in stem.layers()]


def own_stem(
    spec: ModelSpec | None, patch_size: int, embed_dim: int, in_chans: int = 3, stride: int | None = None
) -> StemSpec:
    """Return the stem of an architecture at a patch size.

    Args:
        spec: the row of one of our own families, which sets norm and activation at any patch size; None for a timm
            trunk, which has the default stem.
        patch_size: in pixels.
        embed_dim: width of the trunk.
        in_chans: input channels.
        stride: pixels from token to token; default: the patch size. A row's own stem ignores it.

    Raises:
        ArgumentError: stride-2 layers cannot make such patches.
    """
    if spec is not None and spec.stem_channels and patch_size == spec.patch_size:
        return spec.stem
    stem = default_stem(patch_size, embed_dim, in_chans, stride)
    return stem if spec is None else replace(stem, norm=spec.stem_norm, act=spec.stem_act, bias=spec.stem_bias)


def override_stem(stem: StemSpec, patch_size: int | None, **changes: Any) -> StemSpec:
    """Return ``stem`` with some fields replaced.

    Channels of another length reset strides to 2 and kernel sizes to 3. Replacing the norm ``none`` by another removes
    the convolutions' biases unless ``bias`` is given.

    Args:
        stem: the architecture's own stem.
        patch_size: what the strides must multiply to, in pixels; None for no check.
        changes: ``StemSpec`` fields; None leaves a field as it is.

    Raises:
        ArgumentError: the strides do not multiply to ``patch_size`` or a value is out of range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if "channels" in given and len(given["channels"]) != len(stem.channels):
        given = {"strides": (), "kernel_sizes": (), **given}
    if stem.norm == "none":
        given = {"bias": False, **given}
    spec = replace(stem, **given)
    if patch_size is not None and spec.patch_size != patch_size:
        layers = (patch_size // spec.last_stride).bit_length() - 1
        way = "stem_strides (1 or 2 each)" if len(spec.channels) >= layers else f"at least {layers} stem_channels"
        raise ArgumentError(
            f"the product of stem_strides{last_stride_in_words(spec)} must equal patch_size {patch_size}; "
            f"stem_channels {list(spec.channels)} with stem_strides {list(spec.strides)} reduce the image by "
            f"{spec.patch_size}: pass {way}"
        )
    return spec
