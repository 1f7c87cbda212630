"""Transplant: a pretrained patchify ViT becomes a conv-stem ViT that computes the same function, without training.

The algebra is in ``algebra``; this file finds the patch embedding of a model or a checkpoint, and swaps it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torchvision
from timm.layers import PatchEmbed, resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from convstem.errors import warn
from convstem.hub.provenance import LOADED, TRANSPLANTED, Step, record, steps
from convstem.layouts.engine import translate
from convstem.layouts.torchvision import TORCHVISION
from convstem.registry.catalog import transplanted_name
from convstem.registry.names import FIRST_CONV, RESIZED
from convstem.registry.stem_spec import StemSpec, default_stem
from convstem.stem.embed import ConvStemEmbed, explain_patchify
from convstem.stem.init import init_stem
from convstem.stem.norms import fit_norm
from convstem.stem.vocabulary import StemLike, as_stem_spec, override_stem, to_torchvision
from convstem.transplanting.algebra import transplant_stem
from convstem.transplanting.bands import widen_input
from convstem.transplanting.calibration import Calibration, calibration_statistics
from convstem.transplanting.kept import cached_transplant
from convstem.transplanting.patch_embedding import find_patch_embedding
from convstem.transplanting.patch_size import needs_resizing, resize_patch
from convstem.transplanting.pixels import PixelRange, normalised_range, range_of
from convstem.transplanting.report import TransplantReport
from convstem.transplanting.source import create_source
from convstem.transplanting.statistics import PatchStatistics
from convstem.upstream.private import timm_set_metadata

_logger = logging.getLogger(__name__)


def transplant(
    model: nn.Module | str,
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
            name of a timm model, ``hf-hub:org/name`` or ``local-dir:FOLDER``, whose weights are verified.
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
        ArgumentError: the stem does not fit, the weights are not finite, or the pixel range is unknown.
        CheckpointError, HubError, MissingPathError, UnknownModelError: the model that was named cannot be had.
        UnsupportedModelError: it has no patch embedding that can be transplanted; the message says what it has.

    Warns:
        UserWarning: the stem is too narrow to be exact; the message has the predicted relative error.
    """
    source = create_source(model, pretrained) if isinstance(model, str) else model
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
    projection = old.proj if isinstance(old, PatchEmbed) else old
    patch = projection.weight.shape[-1]
    size = RESIZED if needs_resizing(patch) else patch  # else the caller gives strides that multiply to it
    spec = as_stem_spec(stem) if stem is not None else default_stem(size, *projection.weight.shape[:2])
    spec = override_stem(spec, patch, **(changes or {}))
    new = _timm_stem(old, spec) if isinstance(old, PatchEmbed) else _torchvision_stem(old, spec)
    if transplanted:
        statistics = None if calibration is None else calibration_statistics(calibration, model, patch)
        state, report = _transplant_tensors(
            projection.weight,
            projection.bias,
            spec,
            pixel_range or range_of(model, projection.in_channels),
            statistics,
            margin,
            cached and calibration is None,
        )
        _load(new, state)
        report = replace(report, resized_from=resized_from)
        model.transplant_report = report  # type: ignore[assignment]  # a plain attribute, not a module
    else:
        init_stem(new, spec.norm)
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new.train(old.training))
    if isinstance(old, PatchEmbed):
        _correct_metadata(model, path, spec)


def transplant_state_dict(
    state_dict: Mapping[str, Tensor],
    stem: StemSpec,
    mean: Sequence[float],
    std: Sequence[float],
    in_chans: int = 3,
) -> dict[str, Tensor]:
    """Return a patchify ViT's checkpoint in timm's layout with its patch embedding transplanted.

    A kernel of another size is resampled to the stem's patch, and adapted to ``in_chans``, as timm would. The stem is
    kept in the cache (``transplant_cache``).

    Args:
        state_dict: holds ``patch_embed.proj.weight`` [embed_dim, channels, patch, patch] and, usually, ``.bias``.
        stem: the stem.
        mean, std: the normalisation the weights were trained with.
        in_chans: input channels of the result.
    """
    rest = {key: tensor for key, tensor in state_dict.items() if not key.startswith("patch_embed.proj.")}
    weight, bias = state_dict["patch_embed.proj.weight"], state_dict.get("patch_embed.proj.bias")
    if weight.ndim == 2:  # big_vision's linear patch embedding: [embed_dim, channels * patch * patch]
        weight = weight.view(len(weight), -1, stem.patch_size, stem.patch_size)
    weight = resample_patch_embed(weight, [stem.patch_size, stem.patch_size])
    if in_chans != weight.shape[1]:
        _logger.info(
            f"Adapted the patch embedding from {weight.shape[1]} to {in_chans} input channels by timm's rule, which "
            "repeats or sums the filters; convstem.transplant(..., in_chans=, bands=) places them on chosen bands."
        )
        weight = adapt_input_conv(in_chans, weight)
    state, _ = _transplant_tensors(weight, bias, stem, normalised_range(mean, std, in_chans), cached=True)
    return {**rest, **{f"patch_embed.backbone.{key}": tensor for key, tensor in state.items()}}


def _transplant_tensors(
    weight: Tensor,
    bias: Tensor | None,
    spec: StemSpec,
    pixel_range: PixelRange | None,
    statistics: PatchStatistics | None = None,
    margin: float = 0.25,
    cached: bool = False,
) -> tuple[dict[str, Tensor], TransplantReport]:
    # A frozen norm computes what a BatchNorm in eval mode does, from the same tensors.
    trainable = replace(spec, norm="batchnorm2d") if spec.norm == "frozen_bn" else spec
    low, high = pixel_range or (None, None)
    compute = partial(
        transplant_stem, weight, bias, trainable,
        low=low, high=high, statistics=statistics, margin=margin, dtype=weight.dtype,
    )  # fmt: skip
    state, report = cached_transplant(weight, bias, trainable, pixel_range, margin, compute) if cached else compute()
    if not report.exact:
        warn(
            f"the stem {list(spec.channels)} is too narrow to carry the whole patch embedding: predicted relative "
            f"error {report.predicted_relative_error:.1e}. Exact for this patch size: "
            f"{list(default_stem(spec.patch_size, *weight.shape[:2]).channels)}"
        )
    return state, report


def _timm_stem(old: PatchEmbed, spec: StemSpec) -> ConvStemEmbed:
    """Return a stem with a ``PatchEmbed``'s interface: sizes, output format, strictness and norm."""
    new = ConvStemEmbed(
        spec,
        img_size=old.img_size,
        patch_size=spec.patch_size,
        in_chans=old.proj.in_channels,
        embed_dim=old.proj.out_channels,
        flatten=old.flatten,
        strict_img_size=old.strict_img_size and not old.dynamic_img_pad,
        device=old.proj.weight.device,
        dtype=old.proj.weight.dtype,
    )
    new.output_fmt = old.output_fmt
    new.norm = copy.deepcopy(old.norm)
    return new


def _torchvision_stem(old: nn.Conv2d, spec: StemSpec) -> nn.Module:
    """Return torchvision's own conv stem, taken from a model without blocks."""
    host = torchvision.models.VisionTransformer(
        spec.patch_size, spec.patch_size, 0, 1, old.out_channels, 1, conv_stem_configs=to_torchvision(spec)
    )
    layer = cast("Any", host.conv_proj[0])
    if layer[0].in_channels != old.in_channels:  # torchvision's model has no argument for it
        conv, bias = layer[0], layer[0].bias is not None
        layer[0] = nn.Conv2d(old.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=bias)
    host.conv_proj.register_load_state_dict_pre_hook(explain_patchify)
    host.conv_proj.register_load_state_dict_pre_hook(fit_norm)
    return host.conv_proj.to(device=old.weight.device, dtype=old.weight.dtype)


def _load(stem: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load transplanted tensors, which have the keys of a timm stem, into a stem of either host."""
    if isinstance(stem, ConvStemEmbed):
        stem.backbone.load_state_dict(state)
        return
    named = {f"patch_embed.backbone.{key}": tensor for key, tensor in state.items()}
    layers = len({key.partition(".")[0] for key in state}) - 1
    translated = translate(named, TORCHVISION.rows, "other", layers).state_dict
    stem.load_state_dict({key.removeprefix("conv_proj."): tensor for key, tensor in translated.items()})


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
