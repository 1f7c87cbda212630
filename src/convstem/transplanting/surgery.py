"""Transplant: a pretrained patchify ViT becomes a conv-stem ViT that computes the same function, without training.

This file swaps the patch embedding of a model; ``state_dicts`` does the same to tensors.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from timm.layers import PatchEmbed
from torch import nn

from convstem.hub.provenance import LOADED, TRANSPLANTED, Step, record, steps
from convstem.hub.timm_source import create_source
from convstem.registry.catalog import transplanted_name
from convstem.registry.names import FIRST_CONV, RESIZED
from convstem.registry.stem_spec import StemSpec, default_stem
from convstem.stem.init import init_stem
from convstem.stem.vocabulary import StemLike, as_stem_spec, override_stem
from convstem.transplanting.bands import widen_input
from convstem.transplanting.calibration import Calibration, calibration_statistics
from convstem.transplanting.new_stem import load_stem, timm_stem, torchvision_stem
from convstem.transplanting.patch_embedding import find_patch_embedding, projection_of
from convstem.transplanting.patch_size import needs_resizing, resize_patch
from convstem.transplanting.pixels import PixelRange, range_of
from convstem.transplanting.state_dicts import transplant_tensors
from convstem.upstream.private import timm_set_metadata


def transplant(
    model: nn.Module | str | os.PathLike[str],
    stem: StemLike | None = None,
    calibration: Calibration | None = None,
    margin: float = 0.25,
    pretrained: bool = True,
    pixel_range: PixelRange | None = None,
    in_chans: int | None = None,
    bands: Sequence[int] | None = None,
) -> nn.Module:
    """Return a copy of a patchify ViT whose patch embedding is a conv stem; eval-mode outputs stay the same.

    Args:
        model: a timm model whose patch embedding is a ``PatchEmbed``, torchvision's ``VisionTransformer``, or the
            name of a timm model, a Hub repository ``org/name`` or a folder of one, whose weights are verified.
        stem: architecture name, ``StemSpec``, channels of layers without norm, or list of ``ConvStemConfig``; default:
            ``default_stem``. A model of patch 14 is resized to the stem's patch 16, with as many patches: 256 pixels
            instead of 224.
        calibration: normalised images the model will see, for stems too narrow to be exact and for the BatchNorm
            statistics: a tensor [batch, in_chans, height, width], a folder of images, or an iterable of batches such
            as a ``DataLoader``; default: a 1/f^2 prior.
        margin: how far beyond the pixel range the function is preserved, in normalised units.
        pretrained: load pretrained weights if ``model`` is a name.
        pixel_range: lowest and highest normalised pixel of each channel, for stems without room for both signs of
            everything; default: from the model's mean and std, if these tell of every channel.
        in_chans: give the model more input channels; needs ``bands``.
        bands: for each input channel of the model, the new one that takes its filters, counted from 0 (Sentinel-2's
            RGB: 3, 2, 1). The other bands start at zero, so that the function of these stays what it is.

    Returns:
        The new model, on the same device, in the same dtype and mode; ``transplant_report`` says what is preserved.

    Raises:
        ArgumentError: the stem does not fit, the weights are not finite, or the pixel range is unknown or none.
        ArgumentTypeError: ``model``, ``stem`` or ``calibration`` is of another kind.
        CheckpointError, HubError, MissingPathError, UnknownModelError: the model that was named cannot be had.
        UnsupportedModelError: it has no patch embedding that can be transplanted; the message says what it has.

    Warns:
        UserWarning: the stem is too narrow to be exact; the message has the predicted relative error.
    """
    source = create_source(model, pretrained) if isinstance(model, (str, os.PathLike)) else model
    find_patch_embedding(source)  # refuse before copying
    twin = copy.deepcopy(source)
    if in_chans is not None or bands is not None:
        widen_input(twin, in_chans, bands)
    resized_from = resize_patch(twin, as_stem_spec(stem).patch_size) if stem is not None else resize_patch(twin)
    swap_stem(twin, stem, calibration, margin, pixel_range, resized_from=resized_from)
    note_transplant(twin)
    return twin


def note_transplant(model: Any) -> None:
    """Record that a model was transplanted, if it is known what its weights were made from."""
    known = steps(getattr(model, "pretrained_cfg", None) or {})
    if known and known[-1].what == LOADED:
        record(model, [*known[:-1], Step(TRANSPLANTED, known[-1].source)])


def swap_stem(
    model: nn.Module,
    stem: StemLike | None = None,
    calibration: Calibration | None = None,
    margin: float = 0.25,
    pixel_range: PixelRange | None = None,
    transplanted: bool = True,
    changes: Mapping[str, Any] | None = None,
    cached: bool = False,
    resized_from: int | None = None,
) -> None:
    """Replace a model's patch embedding by a conv stem, in place; see ``transplant`` for the arguments.

    Args:
        transplanted: give the stem the patch embedding's function; False initialises it afresh.
        changes: ``StemSpec`` fields that replace those of ``stem``.
        cached: keep the result for the next time; not for calibrated stems.
        resized_from: patch size that the filters were resized from, for the report.
    """
    path, old = find_patch_embedding(model)
    projection = projection_of(old)
    patch = projection.weight.shape[-1]
    size = RESIZED if needs_resizing(patch) else patch  # else the caller gives strides that multiply to it
    spec = as_stem_spec(stem) if stem is not None else default_stem(size, *projection.weight.shape[:2])
    spec = override_stem(spec, patch, **(changes or {}))
    new = timm_stem(old, spec) if isinstance(old, PatchEmbed) else torchvision_stem(old, spec)
    if transplanted:
        statistics = None if calibration is None else calibration_statistics(calibration, model, patch)
        state, report = transplant_tensors(
            projection.weight,
            projection.bias,
            spec,
            range_of(model, projection.in_channels) if pixel_range is None else pixel_range,
            statistics,
            margin,
            cached and calibration is None,
        )
        load_stem(new, state)
        model.transplant_report = replace(report, resized_from=resized_from)  # type: ignore[assignment]  # a plain attribute, not a module
    else:
        init_stem(new, spec.norm)
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new.train(old.training))
    if isinstance(old, PatchEmbed):
        _correct_metadata(model, path, spec)


def _correct_metadata(model: Any, path: str, spec: StemSpec) -> None:
    """Make the model say what it is now: architecture, first convolution, and the arguments that rebuild its stem."""
    first_conv = FIRST_CONV.replace("patch_embed", path, 1)
    if getattr(model, "pretrained_cfg", None):
        architecture = model.pretrained_cfg.get("architecture")
        cfg = {**model.pretrained_cfg, "first_conv": first_conv, "custom_load": False}
        if architecture:
            cfg["architecture"] = transplanted_name(architecture)
        model.pretrained_cfg = model.default_cfg = cfg
    patch = {"patch_size": spec.patch_size} if needs_resizing(spec.patch_size) else {}  # else a name's own
    timm_set_metadata(model, {**spec.model_args, **patch}, first_conv=first_conv)
