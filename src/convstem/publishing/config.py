"""Builds the model that a ``config.json`` describes, as loading it would, without memory for its parameters."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

from convstem.errors import InvalidFileError
from convstem.hub.config import read_config
from convstem.registry.stem_spec import StemSpec

OUR_ARGUMENTS = {f"stem_{field.name}" for field in fields(StemSpec)} | {"norm_eps"}
"""What every name of ours takes; on other timm trunks it is not in the model class."""


def meta_model(folder: Path) -> Any:
    """Return the model of a folder on the meta device, its config resolved by timm and an image passed through it.

    Raises:
        ValueError: arguments that the model does not have.
        Exception: whatever timm says about a config that it cannot build from.
    """
    import timm
    import torch

    config = read_config(folder / "config.json")
    name, args = config["architecture"], dict(config.get("model_args") or {})
    known = _argument_names(type(timm.create_model(name, device="meta"))) | OUR_ARGUMENTS
    unknown = sorted(set(args) - known)
    if unknown:
        raise InvalidFileError(
            f"config.json: unknown model_args {', '.join(unknown)}; {name} has {', '.join(sorted(known))}"
        )
    model = timm.create_model(f"local-dir:{folder}", device="meta")
    model.eval()(torch.empty(1, *model.pretrained_cfg["input_size"], device="meta"))
    return model


def _argument_names(model: type) -> set[str]:
    """Return the arguments of a model class and its bases that a JSON config can hold."""
    parameters = [p for cls in model.__mro__[:-1] for p in inspect.signature(cls.__init__).parameters.values()]  # type: ignore[misc]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name for p in parameters if p.kind not in kinds} - {"self", "device", "dtype"}
