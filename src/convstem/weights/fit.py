"""The one pipeline from the state dict of any file to the one that our timm models load."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from convstem.errors import CheckpointError, ConversionError
from convstem.layouts.conversion import convert
from convstem.layouts.diagnosis import check_checkpoint
from convstem.layouts.recognise import LAYOUTS, recognise
from convstem.layouts.rows import match
from convstem.layouts.unwrap import unwrap
from convstem.registry.tables import RESIZED, resized_input
from convstem.stem.find import embed_path
from convstem.stem.loading import carry_patch_embedding, has_stem
from convstem.stem.norms import fit_norm

_logger = logging.getLogger(__name__)


def fit(state_dict: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Return a checkpoint's state dict with the model's keys, stem, grid and input channels; timm calls this filter.

    A layout that we know is converted to timm's. timm's own filter of the trunk reads the layouts that it knows, and
    resamples the position embedding. If the file has a patch embedding and no stem, the embedding is transplanted. Then
    every key and shape is compared, except those of a new classifier, which timm adapts.

    Args:
        state_dict: a file's, or what a training script saved around one.
        model: one of our timm models, not yet loaded, with its ``pretrained_cfg``.

    Raises:
        CheckpointError: tensors are missing, surplus or misshapen.
        ConversionError: a layout that we know, but an incomplete ViT.
    """
    path = str(embed_path(model))
    in_timms_keys, title = _in_timms_keys(state_dict, path)
    _check_positions(in_timms_keys, model)
    state = _by_timms_filter(in_timms_keys, model, path)
    embed = model.get_submodule(path)
    projection = f"{path}.proj.weight"
    if projection in state and not has_stem(state, f"{path}."):
        state[projection] = _widened(state[projection], model, embed.in_chans)
        report = carry_patch_embedding(embed, state, f"{path}.")
        model.transplant_report = replace(report, resized_from=embed.resized_from)
    fit_norm(embed.backbone, state, f"{path}.backbone.")
    if "pos_embed" in dict(model.named_buffers(recurse=False)):  # fixed by the grid
        state["pos_embed"] = model.pos_embed
    try:
        check_checkpoint(state, model)
    except CheckpointError as error:
        if not title:
            raise
        raise CheckpointError(
            f"this is {title}; converted to timm's layout, {error}. `convstem convert FILE --out FOLDER` makes a "
            "folder of its own model"
        ) from None
    return state


def stem_channels(tensors: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the channels of a file's conv stem without its last convolution; empty if there is no stem.

    Args:
        tensors: the file's tensors by key, or anything else with a shape.
    """
    convs = {
        int(index): tensor.shape[0] if tensor.shape else 0
        for key, tensor in tensors.items()
        for _, found, end in [key.partition(".backbone.")]
        for index, _, name in [end.partition(".")]
        if found and index.isdigit() and name == "conv.weight"
    }
    return tuple(convs[index] for index in sorted(convs)[:-1])


def _in_timms_keys(state_dict: Mapping[str, Any], path: str) -> tuple[Mapping[str, Any], str]:
    """Return a state dict with timm's keys and the title of its layout; one that we do not know is returned as it is.

    timm's own filter may know it.
    """
    if f"{path}.backbone.0.conv.weight" in state_dict or f"{path}.proj.weight" in state_dict:
        return state_dict, ""  # timm's keys already: nothing to look into
    try:
        opened = unwrap(state_dict)
        layout = LAYOUTS[opened.layout] if opened.layout else recognise(opened.state_dict).layout
    except ConversionError:
        return state_dict, ""
    if layout is None or layout.name == "timm":
        return state_dict, ""
    return convert(state_dict, source=layout.name).state_dict, layout.title


def _check_positions(state_dict: Mapping[str, Any], model: Any) -> None:
    """Raise ``CheckpointError`` for a position embedding that cannot be resampled."""
    own, found = getattr(model, "pos_embed", None), state_dict.get("pos_embed")
    if own is None or found is None or (found.ndim == own.ndim and found.numel()):
        return
    raise CheckpointError(
        f"pos_embed has the shape {list(found.shape)} in the file, and {list(own.shape)} in the model: the file is "
        "damaged, or another model's"
    )


def _by_timms_filter(state_dict: Mapping[str, Any], model: Any, path: str) -> dict[str, Tensor]:
    """Return a state dict after timm's filter of the trunk, without tensors that only pre-training needs.

    timm tells from the patch kernel which grid the positions were made for. A stem has no such kernel, so timm is shown
    one whose size is the stride of the tokens.
    """
    kernel = model.get_submodule(path).proj.weight
    if stride := model.pretrained_model_args.get("stride"):
        kernel = kernel.new_zeros(1, 1, stride, stride, device="cpu")
    shown = {f"{path}.proj.weight": kernel} if has_stem(state_dict, f"{path}.") else {}
    shown = {key: value for key, value in shown.items() if key not in state_dict}
    cfg = model.pretrained_cfg
    model.pretrained_cfg = _of_source(cfg, state_dict, model.get_submodule(path), f"{path}.proj.weight")
    try:
        filtered = _filter_of(model)({**state_dict, **shown}, model)
    finally:
        model.pretrained_cfg = cfg
    drops = [drop.keys for drop in LAYOUTS["timm"].drops]
    return {
        key: tensor
        for key, tensor in filtered.items()
        if key not in shown and not any(match(keys, key) is not None for keys in drops)
    }


def _filter_of(model: nn.Module) -> Callable[[Mapping[str, Any], Any], dict[str, Tensor]]:
    """Return timm's own checkpoint filter for a model's class; most of timm's modules have one."""
    own = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if own is None:
        return lambda state_dict, _: dict(state_dict)
    if "adapt_layer_scale" in inspect.signature(own).parameters:  # DeiT III's, whose builder asks for it
        return partial(own, adapt_layer_scale=True)
    return own


def _of_source(cfg: dict[str, Any], state_dict: Mapping[str, Any], embed: Any, projection: str) -> dict[str, Any]:
    """Return a pretrained cfg with the source's image size, if its patches were smaller than the model's."""
    kernel = getattr(state_dict.get(projection), "shape", (0,))[-1]
    if not embed.resized_from or kernel != embed.resized_from:
        return cfg
    return {**cfg, "input_size": resized_input(cfg["input_size"], RESIZED, embed.resized_from)}


def _widened(weight: Tensor, model: Any, in_chans: int) -> Tensor:
    """Return a patch embedding for the model's input channels, by timm's rule."""
    size = model.pretrained_cfg["input_size"]
    model.pretrained_cfg["input_size"] = (in_chans, *size[1:])  # adapted here, so that timm does not adapt it again
    if in_chans == weight.shape[1]:
        return weight
    _logger.info(
        f"Adapted the patch embedding from {weight.shape[1]} to {in_chans} input channels by timm's rule, which "
        "repeats or sums the filters; convstem.transplant(..., in_chans=, bands=) places them on chosen bands."
    )
    return adapt_input_conv(in_chans, weight, base_chans=weight.shape[1])
