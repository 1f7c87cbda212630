"""The fast path of ``timm.create_model(..., pretrained=True)``: a verified, mapped file becomes the parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from timm.models import PretrainedCfg, resolve_pretrained_cfg
from torch import nn

from convstem.errors import CheckpointError, ConvStemError, DeviceMemoryError, HubError, InvalidFileError, PathError
from convstem.files.checkpoint import read_checkpoint
from convstem.files.safetensors import Stored, check_finite, check_header, check_weights, nonfinite_allowed
from convstem.hub.config import LOADED, TRANSPLANTED, Step, add, check_stated
from convstem.hub.failures import again_if_deleted
from convstem.hub.limits import check_fits_header
from convstem.hub.locate import LOCATION, Located, locate
from convstem.hub.model import SavedCfg
from convstem.layouts.comparison import differences
from convstem.weights.deferred import DeferredInit
from convstem.weights.devices import (
    as_dtype,
    check_cast,
    check_device,
    enough_memory,
    off_meta,
)

FROM_CONFIG = ("hf-hub", "local-dir")
"""``source`` of a pretrained cfg that was read from a ``config.json``."""

_NO_MATTER = ("cache_dir", "device", "dtype")
"""Arguments of an entrypoint that do not change the model's architecture."""

_UNTRUSTED = ("classifier", "custom_load", "first_conv", "hf_hub_filename", "label_offset", "state_dict", "url")
"""Fields that change how weights are fetched or checked; never taken from a ``config.json``."""


@dataclass
class Request:
    """A call of timm's entrypoint: a name, the place of its weights, and arguments.

    Args:
        name: our timm name.
        given_cfg, overlay, cache_dir: ``pretrained_cfg``, ``pretrained_cfg_overlay`` and ``cache_dir`` of
            ``timm.create_model``.
        saved: the arguments of a saved model, from its config.
        kwargs: the arguments of the entrypoint: the caller's and the saved ones.

    Raises:
        InvalidFileError: the config of a saved model has impossible sizes or contradicts itself.
    """

    name: str
    given_cfg: Any
    overlay: Mapping[str, Any] | None
    cache_dir: str | Path | None
    saved: Mapping[str, Any]
    kwargs: dict[str, Any]
    as_saved: bool = field(init=False)
    """Whether the saved model is loaded without changes, so that nothing may be adapted."""

    def __post_init__(self) -> None:
        """Check the config, which is untrusted, before anything is built."""
        if self.from_config and not isinstance(self.given_cfg, SavedCfg):
            check_stated(self.name, self.given_cfg, self.saved)
        others = {key: value for key, value in self.kwargs.items() if value is not None and key not in _NO_MATTER}
        changed = any(key not in self.saved or value != self.saved[key] for key, value in others.items())
        self.as_saved = self.from_config and not changed

    @property
    def from_config(self) -> bool:
        """Whether the model is described by a ``config.json``."""
        return isinstance(self.given_cfg, Mapping) and self.given_cfg.get("source") in FROM_CONFIG

    @cached_property
    def cfg(self) -> PretrainedCfg:
        """The pretrained cfg; fields that a config may not set, or does not, are the architecture's own."""
        if not self.from_config:
            return resolve_pretrained_cfg(self.name, self.given_cfg, self.overlay)
        own = resolve_pretrained_cfg(self.name)
        size = {"input_size": own.input_size, "fixed_input_size": own.fixed_input_size}  # else timm takes 224 pixels
        cfg = resolve_pretrained_cfg(self.name, {**size, **self.given_cfg}, self.overlay)
        ours = {"custom_load": False, "first_conv": own.first_conv, "classifier": own.classifier}
        callers = {name: value for name, value in (self.overlay or {}).items() if name in _UNTRUSTED}
        return replace(cfg, **{**dict.fromkeys(_UNTRUSTED), **ours, **callers})

    @cached_property
    def located(self) -> Located | None:
        """The local file, fetched and verified if it is on the Hub; see ``locate``."""
        return self.given_cfg.located if isinstance(self.given_cfg, SavedCfg) else locate(self.cfg, self.cache_dir)

    @contextmanager
    def blaming(self, create: Callable[..., nn.Module]) -> Iterator[None]:
        """Blame the config for an error only if its model, without the caller's arguments, does not build or fit.

        Args:
            create: builds the model from a pretrained cfg and arguments.
        """
        try:
            yield
        except (CheckpointError, DeviceMemoryError, HubError, InvalidFileError, PathError):
            raise
        except Exception as error:
            if self.from_config:
                self._check_saved(create, error)
            raise

    def _check_saved(self, create: Callable[..., nn.Module], error: Exception) -> None:
        try:
            with torch.device("meta"):
                model = create(pretrained_cfg={**self.given_cfg, "source": ""}, **self.saved)
        except Exception as fault:
            raise InvalidFileError(
                f"config.json describes a model that cannot be built: {type(fault).__name__}: {fault}. Its model_args: "
                f"{json.dumps(self.saved, default=str)[:500]}"
            ) from fault
        if not isinstance(error, ConvStemError) and self.located:
            _check_as_saved(model, check_header(self.located.path))


@again_if_deleted
def load_pretrained(request: Request, build: Callable[..., nn.Module]) -> nn.Module:
    """Build a pretrained timm model without initialising or copying the parameters in its weights file.

    Args:
        request: the caller's request.
        build: takes a pretrained cfg with a local file, the file's header, and the caller's arguments.

    Raises:
        ArgumentError: torch does not have the device, no model computes in the dtype, or the weights exceed float16.
        CheckpointError: the weights do not fit the architecture.
        DeviceMemoryError: the device has no room for the model.
        HubError: the weights cannot be fetched from the Hub.
        InvalidFileError: the file is damaged or holds NaN or Inf, or its config has impossible sizes or contradicts
            itself.
    """
    kwargs = dict(request.kwargs)
    check_device(kwargs.get("device"))  # before anything is fetched
    dtype = kwargs["dtype"] = as_dtype(kwargs.get("dtype"))
    vars(request).pop("located", None)  # of an earlier try
    cfg, located = request.cfg, request.located
    header: dict[str, Stored] = check_weights(located.path) if located else {}  # before anything is built
    if request.from_config and located:
        check_fits_header(request.saved, {"input_size": cfg.input_size, "num_classes": cfg.num_classes}, header)
    local = replace(cfg, **located.overlay) if located else _opened(cfg)
    build = partial(build, local, header or local.state_dict or {}, pretrained=True)
    with off_meta(kwargs), enough_memory(dtype):
        model = _build_deferred(build, bool(located and located.immutable), kwargs)
    if not located and not nonfinite_allowed():  # weights from the caller's state dict, pickle or URL
        check_finite(model.state_dict(), "the checkpoint")
    check_cast(model)
    _restore_location(model.pretrained_cfg, cfg)
    if located:
        if request.as_saved:
            _check_as_saved(model, header)
        _note_origin(model, located, request, header)
    return model


def _build_deferred(build: Callable[..., nn.Module], adopt: bool, kwargs: dict[str, Any]) -> Any:
    """Build in a separate frame, which ``enough_memory`` can clear."""
    with DeferredInit(adopt=adopt):
        return build(**kwargs)


def _opened(cfg: PretrainedCfg) -> PretrainedCfg:
    """Return a cfg with the content of a JAX file, because timm's reader of these does not know conv stems."""
    if cfg.state_dict or Path(str(cfg.file)).suffix != ".npz":
        return cfg
    return replace(cfg, state_dict=read_checkpoint(Path(str(cfg.file))), file=None, custom_load=False)


def _check_as_saved(model: nn.Module, header: Mapping[str, Stored]) -> None:
    """Raise ``CheckpointError`` if weights were adapted although the caller changed nothing.

    timm resizes a position embedding if the config does not belong to the weights; nobody asked for that.
    """
    state = model.state_dict()
    both = [key for key in header if key in state]
    wrong = differences({key: header[key] for key in both}, {key: state[key] for key in both})
    if wrong:
        raise CheckpointError(
            f"config.json does not match the weights beside it: {wrong}. Arguments such as img_size= decide"
        )


def _note_origin(model: Any, located: Located, request: Request, header: Mapping[str, Stored]) -> None:
    cfg = request.cfg
    source = located.hub_id or (f"{request.name}.{cfg.tag}" if located.immutable and cfg.tag else "")
    if cfg.source not in FROM_CONFIG:  # the registry's description, which further training would make wrong
        model.pretrained_cfg.pop("description", None)
    if source:
        add(model, Step(TRANSPLANTED if getattr(model, "transplant_report", None) else LOADED, source))


def _restore_location(stored: Any, cfg: PretrainedCfg) -> None:
    """Restore the location of the weights and the image size in a model's pretrained cfg.

    While loading it has the path of the local file and the number of channels that a stem was transplanted for.
    """
    stored["input_size"] = cfg.input_size
    for name in LOCATION:
        stored.pop(name, None)
        if getattr(cfg, name) is not None:
            stored[name] = getattr(cfg, name)
