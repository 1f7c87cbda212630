"""timm's ``config.json``: read with suspicion, for it may come from anybody."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from convstem.errors import ArgumentError, InvalidFileError, MissingPathError
from convstem.hosts.registration import ensure_registered
from convstem.hub.transfer import LARGEST_TEXT
from convstem.registry import catalog
from convstem.registry.stem_spec import StemSpec
from convstem.registry.trunks import named_trunks, rule_trunks

LARGEST_SIZE = {"depth": 512, "embed_dim": 1 << 14, "img_size": 1 << 14, "num_classes": 1 << 20, "num_heads": 1 << 10}
"""Beyond these a config is absurd, and building the model only to find that out would take for ever."""


LARGEST_NUMBER = 1 << 20
"""The same for every other number of a config."""


OUR_ARGUMENTS = {f"stem_{field.name}" for field in fields(StemSpec)} | {"norm_eps"}
"""What every name of ours takes; on other timm trunks it is not in the model class."""


FORBIDDEN = ("checkpoint_path", "custom_load", "file", "hf_hub_filename", "hf_hub_id", "state_dict", "url")
"""A config has no business to say where weights are: they lie beside it."""


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a timm ``config.json`` of ours, checked as far as possible without building the model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a config, another architecture, locations in it, or sizes beyond reason.
    """
    if not path.is_file():
        raise MissingPathError(f"{path.name} is missing: weights without a config")
    if path.stat().st_size > LARGEST_TEXT:
        raise InvalidFileError(f"{path.name} is {path.stat().st_size:,} bytes; at most {LARGEST_TEXT:,} are read")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidFileError(f"{path.name} is not JSON: {error}") from error
    fields = {"architecture": str, "pretrained_cfg": dict}
    wrong = [
        name for name, kind in fields.items() if not isinstance(config, dict) or not isinstance(config.get(name), kind)
    ]
    if wrong:
        raise InvalidFileError(f"{path.name} is not timm's: {', '.join(wrong)} is missing or of the wrong type")
    check_ours(config["architecture"])
    args = config.get("model_args") or {}
    named = sorted({*FORBIDDEN} & {*config["pretrained_cfg"], *args} & _set_keys(config["pretrained_cfg"], args))
    if named:
        raise InvalidFileError(f"{path.name} may not say where weights are or how to load them: {', '.join(named)}")
    _check_sizes({**args, "num_classes": config.get("num_classes")})
    return dict(config)


def _set_keys(*tables: Mapping[str, Any]) -> set[str]:
    return {key for table in tables for key, value in table.items() if value}


def check_ours(architecture: str) -> None:
    """Raise ``ValueError`` unless this is a conv-stem architecture of this package."""
    if is_ours(architecture):
        return
    raise ArgumentError(
        f"expected a conv-stem architecture of convstem, got {architecture!r}: {catalog.unknown_name(architecture)}. "
        "A patchify ViT becomes one with `convstem transplant`"
    )


def is_ours(architecture: str) -> bool:
    """Tell whether this is a conv-stem architecture of this package, so that a config with it can be loaded."""
    return architecture in catalog.models() or architecture in named_trunks() or architecture in rule_trunks()


def _check_sizes(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        limit = LARGEST_SIZE.get(name, LARGEST_NUMBER)
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > LARGEST_SIZE["depth"] or any(
            isinstance(n, (int, float)) and not -limit <= n <= limit for n in numbers
        ):
            raise InvalidFileError(f"config.json: {name} = {str(value)[:40]} is absurd; at most {limit:,} is accepted")


def meta_model(config: Mapping[str, Any]) -> Any:
    """Return the model that a config describes, without memory for its parameters.

    Raises:
        ValueError: arguments that the model does not have.
    """
    import timm

    name, args = config["architecture"], dict(config.get("model_args") or {})
    ensure_registered(name)
    known = _argument_names(type(timm.create_model(name, device="meta"))) | OUR_ARGUMENTS
    unknown = sorted(set(args) - known)
    if unknown:
        raise InvalidFileError(
            f"config.json: unknown model_args {', '.join(unknown)}; {name} has {', '.join(sorted(known))}"
        )
    classes = config.get("num_classes", config["pretrained_cfg"].get("num_classes"))
    with suppress(KeyError):
        args.pop("num_classes")
    return timm.create_model(name, num_classes=classes, device="meta", **args)


def _argument_names(model: type) -> set[str]:
    """Return the arguments of a model class and its bases that a JSON config can hold."""
    parameters = [p for cls in model.__mro__[:-1] for p in inspect.signature(cls.__init__).parameters.values()]  # type: ignore[misc]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name for p in parameters if p.kind not in kinds} - {"self", "device", "dtype"}
