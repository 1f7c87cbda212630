"""timm's ``config.json``: read with suspicion, for it may come from anybody."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convstem.errors import InvalidFileError, MissingPathError, UnsupportedModelError
from convstem.files.safetensors import Stored
from convstem.hub.transfer import LARGEST_TEXT
from convstem.registry import catalog

LARGEST_SIZE = {"depth": 512, "embed_dim": 1 << 14, "img_size": 1 << 14, "num_classes": 1 << 20, "num_heads": 1 << 10}
"""Beyond these a config is absurd, and building the model only to find that out would take for ever."""


LARGEST_NUMBER = 1 << 20
"""The same for every other number of a config."""


FORBIDDEN = ("checkpoint_path", "custom_load", "file", "hf_hub_filename", "hf_hub_id", "state_dict", "url")
"""A config has no business to say where weights are: they lie beside it."""


INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "nearest-exact", "random")


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_number(item) for item in value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _size(value: Any) -> bool:
    return _numbers(value) and len(value) == 3 and all(isinstance(n, int) and n > 0 for n in value)


# Field of pretrained_cfg -> what it must be, in words and as a test. A field that is absent has timm's default.
_PREPROCESSING: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "crop_pct": ("a number above 0 and at most 2", lambda value: _number(value) and 0 < value <= 2),
    "input_size": ("channels, height and width in pixels", _size),
    "interpolation": (f"one of {', '.join(INTERPOLATIONS)}", lambda value: value in INTERPOLATIONS),
    "mean": ("a list of numbers", _numbers),
    "std": ("a list of numbers above 0", lambda value: _numbers(value) and min(value) > 0),
}


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a timm ``config.json`` of ours, checked as far as possible without building the model.

    Raises:
        FileNotFoundError: no such file.
        TypeError: another architecture.
        ValueError: not a config, locations in it, fields that contradict each other or that timm
            does not know, preprocessing that cannot be, or sizes beyond reason.
    """
    config = read_json(path)
    fields = {"architecture": str, "pretrained_cfg": dict}
    wrong = [name for name, kind in fields.items() if not isinstance(config.get(name), kind)]
    args = config.get("model_args") or {}
    if wrong or not isinstance(args, dict):
        raise InvalidFileError(
            f"{path.name} is not timm's: {', '.join(wrong) or 'model_args'} is missing or of the wrong type"
        )
    check_ours(config["architecture"])
    cfg = config["pretrained_cfg"]
    named = sorted({*FORBIDDEN} & {key for table in (cfg, args) for key, value in table.items() if value})
    if named:
        raise InvalidFileError(f"{path.name} may not say where weights are or how to load them: {', '.join(named)}")
    _check_fields(cfg)
    check_sizes({**args, "num_classes": config.get("num_classes")})
    check_classes(_stated_classes(config, cfg, args))
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a small JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, or not a JSON object.
    """
    if not path.is_file():
        raise MissingPathError(
            f"{path.parent} has no {path.name}; a model's folder holds it beside the weights, as "
            "`convstem convert FILE --out FOLDER`, `convstem pull` and timm.models.save_for_hf write it"
        )
    if path.stat().st_size > LARGEST_TEXT:
        raise InvalidFileError(f"{path.name} is {path.stat().st_size:,} bytes; at most {LARGEST_TEXT:,} are read")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidFileError(f"{path.name} is not timm's: expected a JSON object, got a {type(content).__name__}")
    return content


def check_ours(architecture: str) -> None:
    """Raise ``TypeError`` unless this is a conv-stem architecture of this package."""
    if architecture in catalog.architectures():
        return
    raise UnsupportedModelError(
        f"expected a conv-stem architecture of convstem, got {architecture!r}: {catalog.unknown_name(architecture)}. "
        "A patchify ViT becomes one with `convstem transplant` or convstem.transplant"
    )


def _check_fields(cfg: Mapping[str, Any]) -> None:
    from timm.models import PretrainedCfg

    unknown = sorted(set(cfg) - set(PretrainedCfg.__dataclass_fields__))
    if unknown:
        raise InvalidFileError(f"config.json: timm knows no {', '.join(unknown)} in pretrained_cfg, so it cannot load")
    for name, (expected, accepts) in _PREPROCESSING.items():
        if name in cfg and not accepts(cfg[name]):
            raise InvalidFileError(f"config.json: {name} must be {expected}; got {str(cfg[name])[:40]}")


def check_sizes(values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a number of a config is beyond reason, whatever weights lie beside it."""
    for name, value in values.items():
        limit = LARGEST_SIZE.get(name, LARGEST_NUMBER)
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > LARGEST_SIZE["depth"] or any(
            isinstance(n, (int, float)) and not -limit <= n <= limit for n in numbers
        ):
            raise InvalidFileError(f"config.json: {name} = {str(value)[:40]} is absurd; at most {limit:,} is accepted")


def check_classes(stated: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if the places that state the number of classes differ: the head would be a random one.

    Args:
        stated: the number by place.
    """
    if len(set(map(str, stated.values()))) > 1:
        places = ", ".join(f"{value} in {place}" for place, value in sorted(stated.items()))
        raise InvalidFileError(f"config.json contradicts itself about num_classes: {places}")


def _stated_classes(*tables: Mapping[str, Any]) -> dict[str, Any]:
    places = ("the root", "pretrained_cfg", "model_args")
    found = ((place, table.get("num_classes")) for place, table in zip(places, tables, strict=True))
    return {place: value for place, value in found if value is not None}


def check_fits_header(args: Mapping[str, Any], num_classes: Any, header: Mapping[str, Stored]) -> None:
    """Refuse a saved model's arguments that its weights file is too small for, before anything is built.

    Args:
        args: ``model_args`` of the config.
        num_classes: its number of classes.
        header: of the safetensors file.

    Raises:
        ValueError: a size beyond what the file holds, or two different numbers of classes.
    """
    check_sizes({**args, "num_classes": num_classes})
    if "num_classes" in args:
        check_classes({"the root": num_classes, "model_args": args["num_classes"]})
    dims = [size for stored in header.values() if math.prod(stored.shape) for size in stored.shape]
    largest = max([*dims, 1 << 10])
    limits = {"depth": len(header), "img_size": largest, "mlp_ratio": largest}
    for name, number in _flat({**args, "num_classes": num_classes}):
        limit = limits.get(name, largest)
        if number > limit:
            raise InvalidFileError(
                f"config.json: {name} = {number:,} is more than the weights beside it can have been made for: at most "
                f"{limit:,}, by the tensors in the file"
            )


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)):
                yield name, number
