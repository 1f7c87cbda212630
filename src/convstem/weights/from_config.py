"""Building a model from a ``config.json`` that anybody may have written: checked before, and blamed for what fails."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from timm.models import resolve_pretrained_cfg
from torch import nn

from convstem.errors import CheckpointError, ConvStemError, DeviceMemoryError, HubError, InvalidFileError, PathError
from convstem.files.safetensors import check_header
from convstem.hub.config import check_stated
from convstem.hub.limits import check_as_saved
from convstem.hub.locate import locate

FROM_CONFIG = ("hf-hub", "local-dir")
"""Sources of a pretrained cfg that came from a ``config.json``."""


_NO_MATTER = ("cache_dir", "device", "dtype", "pretrained", "pretrained_cfg", "pretrained_model_args")
"""Arguments of an entrypoint that do not change which model is built."""


_Create = TypeVar("_Create", bound=Callable[..., nn.Module])


def checks_config(create: _Create) -> _Create:
    """Decorate a function that builds timm models: where its arguments come from a config, that is checked.

    What cannot be is refused before anything is built. An error of timm or torch while building is the config's fault
    if the model that it describes, without the caller's arguments, cannot be built either or is not the file's.

    Args:
        create: takes a timm name, the arguments of an entrypoint, and ``as_saved``: whether the caller asks for the
            saved model as it is.
    """

    @functools.wraps(create)
    def checked(name: str, *args: Any, **kwargs: Any) -> nn.Module:
        cfg, saved = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_model_args") or {}
        if not (isinstance(cfg, Mapping) and cfg.get("source") in FROM_CONFIG):
            return create(name, *args, **kwargs)
        check_stated(name, cfg, saved)
        kwargs["pretrained_cfg"] = cfg = _with_size(name, cfg)
        try:
            return create(name, *args, as_saved=not _overridden(kwargs, saved), **kwargs)
        except (CheckpointError, DeviceMemoryError, HubError, InvalidFileError, PathError):
            raise
        except Exception as error:
            model = _build_saved(create, name, cfg, saved)
            if isinstance(error, ConvStemError):  # about an argument, and the config is not to blame
                raise
            located = locate(resolve_pretrained_cfg(name, cfg, kwargs.get("pretrained_cfg_overlay")))
            if located:
                check_as_saved(model.state_dict(), check_header(located.path))
            raise

    return checked  # type: ignore[return-value]  # it has the signature of `create`


def _with_size(name: str, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with its architecture's image size where it states none; without it timm takes 224 pixels."""
    own = resolve_pretrained_cfg(name)
    return {"input_size": own.input_size, "fixed_input_size": own.fixed_input_size, **cfg}


def _build_saved(create: Callable[..., nn.Module], name: str, cfg: Any, saved: Mapping[str, Any]) -> nn.Module:
    """Return the model that a config describes, without values; whatever is raised blames the config."""
    try:
        with torch.device("meta"):
            return create(name, pretrained_cfg=cfg, **saved)
    except Exception as error:
        raise InvalidFileError(
            f"config.json describes a model that cannot be built: {type(error).__name__}: {error}. Its model_args: "
            f"{json.dumps(saved, default=str)[:500]}"
        ) from error


def _overridden(kwargs: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Tell whether a caller asks for another model than the saved one."""
    others = {name: value for name, value in kwargs.items() if value is not None and name not in _NO_MATTER}
    return any(name not in saved or value != saved[name] for name, value in others.items())
