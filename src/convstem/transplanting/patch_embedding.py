"""Finds a plain ViT's patch embedding and its lowest pixels; places RGB filters on chosen bands."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torchvision
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torchvision.models import VisionTransformer

from convstem.errors import ArgumentError, ArgumentTypeError, UnsupportedModelError
from convstem.layouts.transformers import layout_of_config
from convstem.registry.records import IMAGENET_MEAN, IMAGENET_STD
from convstem.stem.carried import PixelRange, lowest_pixels, normalised_range, numbers
from convstem.stem.embed import ConvStemEmbed
from convstem.stem.find import find_embed, find_stem
from convstem.upstream import timm_set_metadata, torch_has_hooks

_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
"""Mean and standard deviation of torchvision's own ViT weights."""


def find_patch_embedding(model: nn.Module) -> tuple[str, Any]:
    """Return the patch embedding's path and module: a ``PatchEmbed``, or torchvision's convolution.

    Raises:
        ArgumentTypeError: ``model`` is not a model.
        UnsupportedModelError: no patch embedding that can be transplanted; the message says what the model has.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(
            f"transplant takes a patchify ViT or the name of one; got {type(model).__name__}: for a state dict, load "
            "it into the model it belongs to first"
        )
    path, embedding = _torchvision(model) if isinstance(model, torchvision.models.VisionTransformer) else _timm(model)
    what = next(_more_than_patches(embedding), None)
    if what:
        raise UnsupportedModelError(
            f"the patch embedding of {type(model).__name__} has {what}, which a stem would not have: transplant takes "
            "a plain Conv2d whose kernel equals its stride"
        )
    return path, embedding


def projection_of(embedding: Any) -> Any:
    """Return the convolution of a module from ``find_patch_embedding``."""
    return embedding.proj if isinstance(embedding, PatchEmbed) else embedding


def lowest_of(model: nn.Module, pixel_range: PixelRange | None) -> Tensor | None:
    """Return the lowest normalised pixel of each channel of a patchify model, or None if it is not known.

    Args:
        model: its mean and standard deviation give the lowest pixel.
        pixel_range: the user's range, used instead.

    Raises:
        ArgumentError: the range, or the mean and standard deviation, are not valid.
    """
    in_chans = projection_of(find_patch_embedding(model)[1]).in_channels
    if pixel_range is not None:
        return lowest_pixels(pixel_range, in_chans)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    of_torchvision = isinstance(model, torchvision.models.VisionTransformer)
    mean, std = _IMAGENET if of_torchvision else (cfg.get("mean"), cfg.get("std"))
    known = normalised_range(mean, std, in_chans) if mean and std else None
    return None if known is None else numbers(known[0])


_HAS_STEM = (
    "already has a conv stem; transplant takes patchify models, and gives this one only more input channels, by "
    "in_chans= and bands="
)


def _torchvision(model: Any) -> tuple[str, nn.Conv2d]:
    if isinstance(model.conv_proj, nn.Conv2d):
        return "conv_proj", model.conv_proj
    raise UnsupportedModelError(f"this torchvision model {_HAS_STEM}")


def _timm(model: nn.Module) -> tuple[str, PatchEmbed]:
    embeddings = [(name, module) for name, module in model.named_modules() if type(module) is PatchEmbed]
    if len(embeddings) == 1 and isinstance(embeddings[0][1].proj, nn.Conv2d):
        return embeddings[0]
    raise UnsupportedModelError(_no_patch_embedding(model))


def _no_patch_embedding(model: nn.Module) -> str:
    found = getattr(model, "patch_embed", None)
    if isinstance(found, ConvStemEmbed):
        return f"this model {_HAS_STEM}"
    kind = f"a {type(found).__name__}" if found is not None else "no patch_embed"
    library = type(model).__module__.partition(".")[0]
    if library in _ELSEWHERE:
        return f"{type(model).__name__} is {_of_library(library, model)}"
    return (
        f"{type(model).__name__} has {kind}; transplant takes models with one timm PatchEmbed whose kernel equals its "
        "stride (VisionTransformer, Eva, Beit, Cait, ConViT, DeiT, relpos, SAM, Swin), or torchvision's ViT"
    )


_ELSEWHERE = {
    "transformers": (
        "a transformers model; transplant its timm twin instead: model.save_pretrained(FOLDER), then `convstem "
        "convert FOLDER --out OUT --transplant`, or convstem.convert(model.state_dict()) in Python"
    ),
    "open_clip": (
        "open_clip's own class: timm has the image towers of OpenAI, LAION and DataComp as vit_*_clip_*, which "
        "convstem.transplant takes by name"
    ),
}
"""Library with its own image models -> what its models are, and how to transplant them."""

_OTHERWISE = (
    "a transformers model without a layout in convstem: transplant the timm model of the same weights, for example "
    "convstem.transplant('vit_small_patch16_dinov3') for DINOv3"
)


def _of_library(library: str, model: nn.Module) -> str:
    """Return what a model of another library is, and the command or call to transplant its weights."""
    config = getattr(model, "config", None)
    known = library != "transformers" or layout_of_config({"model_type": getattr(config, "model_type", "")})
    return _ELSEWHERE[library] if known else _OTHERWISE


def _more_than_patches(embedding: Any) -> Iterator[str]:
    """Yield what a patch embedding does beyond multiplying patches by its weight."""
    conv = projection_of(embedding)
    for module in dict.fromkeys((embedding, conv)):  # the same module in torchvision
        if "forward" in vars(module):
            yield f"a forward of its own, set on this {type(module).__name__}"
        if torch_has_hooks(module):
            yield "hooks"
        if is_parametrized(module):
            yield "parametrizations"
    if type(conv).forward is not nn.Conv2d.forward:
        yield f"the forward of {type(conv).__name__}"
    if conv.kernel_size != conv.stride:
        yield f"kernel {conv.kernel_size} and stride {conv.stride}"
    if conv.padding not in ((0, 0), "valid"):
        yield f"padding {conv.padding}"
    if conv.dilation != (1, 1):
        yield f"dilation {conv.dilation}"
    if conv.groups != 1:
        yield f"{conv.groups} groups"
    if not conv.in_channels:
        yield "no input channels"


def spread_over_bands(weight: Tensor, in_chans: int, bands: Sequence[int]) -> Tensor:
    """Return filters for more input channels that compute the same from the chosen bands and ignore the others.

    Args:
        weight: of the first layer, [filters, channels, k, k].
        in_chans: channels of the result.
        bands: for each channel of ``weight``, the channel of the result that gets its filters, counted from 0.

    Returns:
        [filters, in_chans, k, k], zero for all other bands.

    Raises:
        ArgumentError: too few channels; bands out of range, named twice, or not one for each channel of ``weight``.
    """
    channels = weight.shape[1]
    in_chans, *chosen = map(_whole, (in_chans, *bands))
    if in_chans < channels:
        raise ArgumentError(f"in_chans must be at least {channels}, as many as the source has; got {in_chans}")
    if len(chosen) != channels or len({*chosen}) != channels or not all(0 <= band < in_chans for band in chosen):
        raise ArgumentError(
            f"bands must name {channels} different bands from 0 to {in_chans - 1}, one for each input channel of the "
            f"source; got {list(bands)}. Sentinel-2's red, green and blue are bands 3, 2, 1 of 13"
        )
    result = weight.new_zeros(len(weight), in_chans, *weight.shape[2:])
    result[:, chosen] = weight
    return result


def _whole(number: Any) -> int:
    """Return an integer of any library as an int; raise ``ArgumentError`` for anything else."""
    try:
        return operator.index(number)
    except TypeError as error:
        raise ArgumentError(
            f"in_chans must be a whole number, and bands a list of whole numbers; got {number!r}"
        ) from error


def first_convolution(model: nn.Module) -> Any:
    """Return the first convolution of a model's conv stem, in either host; None if it has no stem."""
    try:
        stem = find_stem(model)
    except UnsupportedModelError:
        return None
    return next(module for module in stem.modules() if isinstance(module, nn.Conv2d))


def widen_input(model: Any, in_chans: int | None, bands: Sequence[int] | None) -> None:
    """Give a model ``in_chans`` input channels, in place; see ``spread_over_bands``.

    Raises:
        ArgumentError: ``in_chans`` or ``bands`` is missing, or the bands do not fit.
    """
    if in_chans is None or not isinstance(bands, Iterable):
        raise ArgumentError(
            f"in_chans and bands belong together; got in_chans={in_chans}, bands={bands}: bands names the new input "
            "channels that take the model's own filters, in their order; the others start at zero. For timm's rule, "
            "which repeats the filters, create the timm model with in_chans"
        )
    stem = find_embed(model)
    first = first_convolution(model) or projection_of(find_patch_embedding(model)[1])
    spread = spread_over_bands(first.weight.detach(), in_chans, bands)
    first.weight = nn.Parameter(spread, requires_grad=first.weight.requires_grad)
    first.in_channels = in_chans
    if isinstance(model, VisionTransformer):  # torchvision's class does not store the channels
        return
    if stem is not None:
        stem.in_chans, stem.lowest = in_chans, None  # the new bands' lowest pixels are not known
    if hasattr(model, "in_chans"):
        model.in_chans = in_chans
    timm_set_metadata(model, {"in_chans": in_chans})
    if cfg := getattr(model, "pretrained_cfg", None):
        size = (in_chans, *cfg["input_size"][1:])
        model.pretrained_cfg = model.default_cfg = {**cfg, "input_size": size}
