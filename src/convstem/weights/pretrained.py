"""The fast path of ``timm.create_model(..., pretrained=True)``: a verified file, mapped, becomes the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, resolve_pretrained_cfg
from torch import nn

from convstem.files.safetensors import Stored, check_finite, check_weights, nonfinite_allowed
from convstem.hub.limits import check_as_saved, check_fits_header
from convstem.hub.locate import LOCATION, Located, locate
from convstem.hub.provenance import LOADED, TRANSPLANTED, Step, add
from convstem.weights.deferred import DeferredInit
from convstem.weights.devices import check_device, enough_memory, off_meta
from convstem.weights.from_config import FROM_CONFIG

_UNTRUSTED = ("classifier", "custom_load", "first_conv", "hf_hub_filename", "label_offset", "state_dict", "url")
"""Fields by which a cfg could change how weights are fetched or checked: never taken from a ``config.json``."""


def build_pretrained(
    build: Callable[..., nn.Module],
    name: str,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    as_saved: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a pretrained timm model without initialising or copying what its weights file holds.

    Args:
        build: takes ``pretrained``, ``pretrained_cfg``, ``cache_dir`` and ``kwargs``, as ``build_model_with_cfg`` does.
        name: timm name of the architecture.
        pretrained_cfg, pretrained_cfg_overlay, cache_dir: see ``timm.create_model``.
        as_saved: the model of a config and a file is asked for as it is, so that nothing of it may be adapted.
        kwargs: passed to ``build``.

    Raises:
        ArgumentError: a device that torch does not have here.
        CheckpointError: the weights do not fit the architecture.
        DeviceMemoryError: the device has no room for the model.
        HubError: the weights cannot be had from the Hub.
        InvalidFileError: the file is damaged or holds NaN or Inf, or its config is absurd or contradicts itself.
    """
    check_device(kwargs.get("device"))  # before anything is fetched
    overlay = dict(pretrained_cfg_overlay or {})
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, overlay)
    from_config = cfg.source in FROM_CONFIG
    if from_config:
        cfg = _without_untrusted(cfg, name, overlay)
    located = locate(cfg, cache_dir)
    local_cfg = cfg
    if located:
        header = check_weights(located.path)  # before anything is built
        if from_config:
            saved = kwargs.get("pretrained_model_args") or {}
            check_fits_header(saved, {"input_size": cfg.input_size, "num_classes": cfg.num_classes}, header)
        local_cfg = replace(cfg, **located.overlay)
    adopt = bool(located and located.immutable)
    with off_meta(kwargs), enough_memory():
        model = _build_deferred(build, adopt, pretrained_cfg=local_cfg, cache_dir=cache_dir, **kwargs)
    if not located and not nonfinite_allowed():  # a state dict, a pickle or a URL that the caller chose
        check_finite(dict(model.named_parameters()), "the checkpoint")
    restore_location(model.pretrained_cfg, cfg)
    if located:
        if as_saved:
            check_as_saved(model.state_dict(), header)
        _note_origin(model, located, name, cfg, header)
    return model


def _build_deferred(build: Callable[..., nn.Module], adopt: bool, **kwargs: Any) -> nn.Module:
    with DeferredInit(adopt=adopt):
        return build(pretrained=True, **kwargs)


def _note_origin(model: Any, located: Located, name: str, cfg: PretrainedCfg, header: Mapping[str, Stored]) -> None:
    source = located.hub_id or (f"{name}.{cfg.tag}" if located.immutable and cfg.tag else "")
    if cfg.source not in FROM_CONFIG:  # the registry's words about weights that may be trained further
        model.pretrained_cfg.pop("description", None)
    if source:
        ours = any(".backbone.0.conv." in key for key in header)
        add(model, Step(LOADED if ours else TRANSPLANTED, source))


def _without_untrusted(cfg: PretrainedCfg, name: str, overlay: Mapping[str, Any]) -> PretrainedCfg:
    """Return a cfg read from a ``config.json`` whose ``_UNTRUSTED`` fields are the architecture's or the overlay's."""
    own = resolve_pretrained_cfg(name)
    ours = {"custom_load": False, "first_conv": own.first_conv, "classifier": own.classifier}
    callers = {field: overlay[field] for field in _UNTRUSTED if field in overlay}
    return replace(cfg, **dict.fromkeys(_UNTRUSTED) | ours | callers)


def restore_location(stored: Any, cfg: PretrainedCfg) -> None:
    """Make a model's pretrained cfg say again what it says for everyone: where its weights are, and of which images.

    While loading it says where the file is on this machine, and how many channels a stem was transplanted for.
    """
    stored["input_size"] = cfg.input_size
    for field in LOCATION:
        stored.pop(field, None)
        if getattr(cfg, field) is not None:
            stored[field] = getattr(cfg, field)
