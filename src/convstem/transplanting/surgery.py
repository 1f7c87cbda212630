"""Transplant: a pretrained patchify ViT becomes a conv-stem ViT that computes the same function, without training.

This file replaces a model's patch embedding; ``convstem/stem/carry.py`` computes the new stem's parameters.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torchvision
from timm.layers import PatchEmbed
from torch import nn

from convstem.hub.config import LOADED, TRANSPLANTED, Step, record, steps
from convstem.hub.model import create_source
from convstem.registry.catalog import transplanted_name
from convstem.registry.stem_spec import StemSpec, default_stem
from convstem.registry.strides import check_stride
from convstem.registry.tables import FIRST_CONV, RESIZED
from convstem.stem.carried import PixelRange
from convstem.stem.carry import MARGIN, carry
from convstem.stem.embed import ConvStemEmbed
from convstem.stem.loading import torchvision_carrier, under_own_keys
from convstem.stem.norms import fit_norm, init_stem
from convstem.stem.vocabulary import StemLike, as_stem_spec, override_stem, to_torchvision
from convstem.transplanting.grid import needs_resizing, resize_patch, set_stride
from convstem.transplanting.patch_embedding import (
    find_patch_embedding,
    first_convolution,
    lowest_of,
    projection_of,
    widen_input,
)
from convstem.upstream import timm_set_metadata, torch_keeps_values


def transplant(
    model: nn.Module | str | os.PathLike[str],
    stem: StemLike | None = None,
    margin: float = MARGIN,
    pretrained: bool = True,
    pixel_range: PixelRange | None = None,
    in_chans: int | None = None,
    bands: Sequence[int] | None = None,
    stride: int | None = None,
) -> nn.Module:
    """Return a copy of a patchify ViT with a conv stem as its patch embedding; eval-mode outputs stay the same.

    Args:
        model: a timm model with a ``PatchEmbed``, torchvision's ``VisionTransformer``, or the name of a timm model, a
            Hub repository ``org/name`` or a folder of one; weights loaded by name are verified. A model that already
            has a conv stem can only be given more input channels.
        stem: architecture name, ``StemSpec``, channels of layers without norm, or list of ``ConvStemConfig``; default:
            ``default_stem``. A model of patch 14 is resized to the stem's patch size, by default 16, with as many
            patches: 256 pixels instead of 224.
        margin: for a stem without room for both signs: how far below the pixel range the function is preserved, in
            normalised units.
        pretrained: load pretrained weights if ``model`` is a name.
        pixel_range: for such a stem: lowest and highest normalised pixel of each channel; default: from the model's
            mean and std, if they cover every channel.
        in_chans: give the model more input channels; needs ``bands``.
        bands: for each input channel of the model, the new channel that gets its filters, counted from 0 (Sentinel-2's
            RGB: 3, 2, 1). The filters of the other bands start at zero, so the function stays the same.
        stride: pixels from token to token: the patch size (the default) times or divided by a power of two. Below the
            patch size patches overlap, and the same image has more tokens. Above it each token sees averages of pixels,
            and larger images have as many tokens as before.

    Returns:
        The new model, on the same device, in the same dtype and mode; ``transplant_report`` says what is preserved.

    Raises:
        ArgumentError: the stem or the stride does not fit, the stem is too narrow, the weights are not finite, or the
            pixel range is unknown or not valid.
        ArgumentTypeError: ``model`` or ``stem`` has another type.
        CheckpointError, HubError, MissingPathError, UnknownModelError: the named model cannot be loaded.
        UnsupportedModelError: the model has no patch embedding that can be transplanted, or its positions do not allow
            a denser grid; the message says what it has.
    """
    wider = in_chans is not None or bands is not None
    more = wider and stem is None and stride is None
    if isinstance(model, (str, os.PathLike)):
        source = create_source(model, pretrained, None if more else find_patch_embedding)
    else:
        source = model
    only_wider = more and isinstance(source, nn.Module) and first_convolution(source) is not None
    if not only_wider:
        find_patch_embedding(source)  # refuse before copying
    twin = copy.deepcopy(source)
    if wider:
        widen_input(twin, in_chans, bands)
    if only_wider:
        return twin
    own_patch = None if stem is None else RESIZED if stride else as_stem_spec(stem).patch_size
    resized_from = resize_patch(twin, own_patch)
    stride = _checked_stride(twin, stride)
    transplant_in_place(twin, stem_for(twin, stem, stride=stride), margin, pixel_range, resized_from)
    _note_transplant(twin)
    return twin


def transplant_in_place(
    model: nn.Module,
    spec: StemSpec,
    margin: float = MARGIN,
    pixel_range: PixelRange | None = None,
    resized_from: int | None = None,
) -> None:
    """Replace a model's patch embedding by a stem that computes the same; see ``transplant``.

    Args:
        model: a patchify model; its patch size is the stem's times or divided by a power of two.
        spec: the stem.
        margin, pixel_range: see ``transplant``.
        resized_from: patch size before the filters were resized, for the report.
    """
    path, old = find_patch_embedding(model)
    projection = projection_of(old)
    low = lowest_of(model, pixel_range)
    state, report = carry(projection.weight, projection.bias, spec, low, margin=margin, stride=spec.patch_size)
    if report.restrided:
        set_stride(model, spec.patch_size)
    new = _new_stem(old, spec, torch.device("meta"), projection.kernel_size[0])  # gets its values from ``state``
    stem = new.backbone if isinstance(new, ConvStemEmbed) else new
    stem.load_state_dict(under_own_keys(stem, state), assign=True)
    if isinstance(new, ConvStemEmbed):
        new.lowest = None if low is None else low.tolist()
    if not projection.weight.requires_grad:
        new.requires_grad_(False)
    _replace(model, path, new.to(projection.weight.device), spec)
    model.transplant_report = replace(report, resized_from=resized_from)  # type: ignore[assignment]  # no module


def put_stem(model: nn.Module, spec: StemSpec, window: int | None = None) -> nn.Module:
    """Replace a patchify model's patch embedding by a fresh stem, in place, and return the stem's module.

    Args:
        model: of the stem's patch size.
        spec: the stem, initialised by ``init_stem``.
        window: see ``ConvStemEmbed``.

    Raises:
        UnsupportedModelError: the model has no patch embedding that a stem can replace.
    """
    path, old = find_patch_embedding(model)
    # Under accelerate's init_empty_weights parameters move to the meta device, but buffers stay where they are created.
    device = projection_of(old).weight.device if torch_keeps_values() else torch.empty(0).device
    new = _new_stem(old, spec, device, window)
    init_stem(new, spec.norm)
    _replace(model, path, new, spec)
    return new


def _checked_stride(model: Any, stride: int | None) -> int:
    """Return the stride for a patchify model, by default its patch size; raise ``ArgumentError`` if it does not fit."""
    embedding = find_patch_embedding(model)[1]
    size = embedding.img_size if isinstance(embedding, PatchEmbed) else (model.image_size, model.image_size)
    return check_stride(stride, projection_of(embedding).kernel_size[0], size)


def stem_for(model: nn.Module, stem: StemLike | None = None, stride: int | None = None, **changes: Any) -> StemSpec:
    """Return the stem for a patchify model.

    Args:
        model: its patch size is the stem's.
        stem: see ``transplant``.
        stride: pixels from token to token; default: the patch size.
        changes: ``StemSpec`` fields that replace those of ``stem``.

    Raises:
        ArgumentError: the strides do not multiply to the model's patch size, or to the stride.
    """
    projection = projection_of(find_patch_embedding(model)[1])
    embed_dim, in_chans, patch, _ = projection.weight.shape
    size = RESIZED if needs_resizing(patch) else patch  # only for default_stem: ``changes`` must then have the strides
    apart = None if stride == patch else stride
    spec = as_stem_spec(stem) if stem is not None else default_stem(size, embed_dim, in_chans, apart)
    return override_stem(spec, stride or patch, **changes)


def _new_stem(
    old: PatchEmbed | nn.Conv2d, spec: StemSpec, device: torch.device, window: int | None = None
) -> nn.Module:
    """Return a stem that replaces a patch embedding, on this device and in the embedding's dtype."""
    with device:  # some modules take no device argument and use torch's default
        return _timm_stem(old, spec, device, window) if isinstance(old, PatchEmbed) else _torchvision_stem(old, spec)


def _timm_stem(old: PatchEmbed, spec: StemSpec, device: torch.device, window: int | None) -> nn.Module:
    """Return a stem with a ``PatchEmbed``'s interface: sizes, output format, strictness and norm."""
    new = ConvStemEmbed(
        spec,
        img_size=old.img_size,
        patch_size=spec.patch_size,
        in_chans=old.proj.in_channels,
        embed_dim=old.proj.out_channels,
        flatten=old.flatten,
        strict_img_size=old.strict_img_size and not old.dynamic_img_pad,
        device=device,
        dtype=old.proj.weight.dtype,
        window=window,
    )
    new.output_fmt = old.output_fmt
    new.norm = old.norm
    return new


def _torchvision_stem(old: nn.Conv2d, spec: StemSpec) -> nn.Module:
    """Return torchvision's own conv stem, taken from a model without blocks."""
    host = torchvision.models.VisionTransformer(
        spec.patch_size, spec.patch_size, 0, 1, old.out_channels, 1, conv_stem_configs=to_torchvision(spec)
    )
    layer = cast("Any", host.conv_proj[0])
    if layer[0].in_channels != old.in_channels:  # torchvision's class has no argument for input channels
        conv, bias = layer[0], layer[0].bias is not None
        layer[0] = nn.Conv2d(old.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=bias)
    host.conv_proj.register_load_state_dict_pre_hook(torchvision_carrier(spec, old.out_channels, old.in_channels))
    host.conv_proj.register_load_state_dict_pre_hook(fit_norm)
    return host.conv_proj.to(old.weight.dtype)


def _replace(model: Any, path: str, new: nn.Module, spec: StemSpec) -> None:
    """Put a stem in place of the patch embedding and update the model's metadata."""
    parent, _, leaf = path.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, leaf, new.train(getattr(owner, leaf).training))
    if not isinstance(new, ConvStemEmbed):
        return
    first_conv = FIRST_CONV.replace("patch_embed", path, 1)
    if getattr(model, "pretrained_cfg", None):
        cfg = {**model.pretrained_cfg, "first_conv": first_conv, "custom_load": False}
        model.pretrained_cfg = model.default_cfg = cfg
    timm_set_metadata(model, new.model_args, first_conv=first_conv)


def _note_transplant(model: Any) -> None:
    """Give a transplanted timm model its conv-stem name, and record the source of its weights, if known."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if cfg.get("architecture"):
        cfg = {**cfg, "architecture": transplanted_name(cfg["architecture"])}
        model.pretrained_cfg = model.default_cfg = cfg
    known = steps(cfg)
    if known and known[-1].what == LOADED:
        record(model, [*known[:-1], Step(TRANSPLANTED, known[-1].source)])
