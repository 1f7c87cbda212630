"""Limits on a saved model's config: values of the right types, and sizes that fit the weights beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from torch import Tensor

from convstem.errors import CheckpointError, InvalidFileError
from convstem.files.safetensors import Stored
from convstem.registry.tables import FIRST_CONV

_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    float: ("a number", lambda value: is_number(value)),
    int: ("a whole number", lambda value: is_number(value) and isinstance(value, int)),
    str: ("text", lambda value: isinstance(value, str)),
    type(None): ("null", lambda value: value is None),
    Any: ("anything", lambda value: True),
}


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number and not a bool."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value read from JSON matches an annotation. Classes and functions never match: JSON has none."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and _items_fit(value, parts)
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(item, parts[1]) for item in value.values())
    return kind in _PLAIN and _PLAIN[kind][1](value)


def _items_fit(values: Any, kinds: tuple[Any, ...]) -> bool:
    if len(kinds) == 1 or kinds[-1] is Ellipsis:  # timm writes Tuple[str] for Tuple[str, ...]
        return all(fits(value, kinds[0]) for value in values)
    return len(values) == len(kinds) and all(map(fits, values, kinds))


def in_words(kind: Any) -> str:
    """Return an annotation in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(in_words, parts))))
    if origin is Literal:
        return f"one of {', '.join(sorted(map(repr, parts)))}"
    if origin in (list, tuple):
        count = "" if len(parts) == 1 or parts[-1] is Ellipsis else f"{len(parts)} times "
        return f"a list of {count}{in_words(parts[0])}"
    if origin is dict:
        return "an object"
    return _PLAIN[kind][0] if kind in _PLAIN else ""


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise ``InvalidFileError`` naming the first field of a ``config.json`` that has the wrong type."""
    for name, value in values.items():
        if not fits(value, kinds[name]):
            words = in_words(kinds[name]) or "left out"
            raise InvalidFileError(f"config.json: {name} must be {words}; got {short(value)}")


def short(value: Any) -> str:
    """Return a value as JSON, cut after 40 characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."


LARGEST_SIZE = {
    "depth": 512,
    "embed_dim": 1 << 14,
    "img_size": 1 << 13,
    "in_chans": 1 << 12,
    "input_size": 1 << 13,
    "mlp_ratio": 1 << 10,
    "num_classes": 1 << 20,
    "num_heads": 1 << 10,
    "patch_size": 1 << 10,
    "stride": 1 << 10,
}
"""Larger sizes are refused before the model is built, which would take too long. All must be positive, except
``num_classes``, which is 0 without a head."""


LARGEST_NUMBER = 1 << 20
"""Limit for every other number of a config."""


LARGEST_LIST = 512
"""Longest list of numbers, such as a stem's channels."""


LARGEST_PATCH = 128
"""Largest spacing of tokens in pixels. With the tokens in a position embedding, it bounds the image size."""


def check_config_sizes(sizes: Iterable[tuple[str, Any]]) -> None:
    """Raise ``InvalidFileError`` if a number of a config is beyond reason for any weights.

    Args:
        sizes: fields and their values; anything but numbers and lists of numbers is skipped.
    """
    for name, value in sizes:
        limit = LARGEST_SIZE.get(name, LARGEST_NUMBER)
        numbers = _numbers(value)
        if len(numbers) > LARGEST_LIST or any(not -limit <= number <= limit for number in numbers):
            raise InvalidFileError(f"config.json: {name} = {short(value)} is too large; at most {limit:,} is accepted")
        if name in LARGEST_SIZE and any(number <= 0 for number in numbers) and (name, value) != ("num_classes", 0):
            raise InvalidFileError(f"config.json: {name} must be positive; got {short(value)}")


def stated_sizes(args: Mapping[str, Any], cfg: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return a config's fields that set a model's size, with their values. A field may occur twice.

    Args:
        args: ``model_args`` of the config.
        cfg: its ``pretrained_cfg``, with the root's number of classes.
    """
    return [*args.items(), *((name, cfg[name]) for name in ("input_size", "num_classes") if name in cfg)]


def check_fits_header(args: Mapping[str, Any], cfg: Mapping[str, Any], header: Mapping[str, Stored]) -> None:
    """Refuse a config whose sizes the weights file is too small for, before anything is built.

    Args:
        args, cfg: see ``stated_sizes``.
        header: header of the safetensors file.

    Raises:
        InvalidFileError: a size beyond what the file holds, or another number of input channels.
    """
    _check_channels(args, cfg, header)
    sizes = stated_sizes(args, cfg)
    check_config_sizes(sizes)
    dims = [size for stored in header.values() if math.prod(stored.shape) for size in stored.shape]
    largest = max([*dims, 1 << 10])
    limits = {"depth": len(header), "img_size": largest * _coarser(args), "input_size": LARGEST_SIZE["input_size"]}
    for name, value in sizes:
        limit = limits.get(name, largest)
        if any(number > limit for number in _numbers(value)):
            raise InvalidFileError(_too_large(name, value, f"at most {limit:,}"))
        if name in ("img_size", "input_size"):
            _check_pixels(name, value, header)


def _coarser(args: Mapping[str, Any]) -> int:
    """Return stride // patch_size of a config, at least 1: the factor by which its images may be larger."""
    stride, patch = args.get("stride"), args.get("patch_size")
    return max(stride // patch, 1) if isinstance(stride, int) and isinstance(patch, int) else 1


def _check_channels(args: Mapping[str, Any], cfg: Mapping[str, Any], header: Mapping[str, Stored]) -> None:
    stated = args.get("in_chans") or (cfg.get("input_size") or (None,))[0]
    for name in (f"{FIRST_CONV}.weight", "patch_embed.proj.weight"):
        shape = header[name].shape if name in header else ()
        if stated and len(shape) == 4 and shape[1] != stated:
            raise InvalidFileError(
                f"config.json does not match the weights beside it: {name} takes {shape[1]} channels, but in_chans or "
                f"input_size says {stated}"
            )


def check_as_saved(state: Mapping[str, Tensor], header: Mapping[str, Stored]) -> None:
    """Check that a model loaded by its config has the shapes in its file.

    timm silently resizes a position embedding when the config does not match the weights.

    Args:
        state: the model's state dict.
        header: header of the safetensors file, or the part to compare.

    Raises:
        CheckpointError: the shapes differ.
    """
    wrong = sorted(key for key in header if key in state and header[key].shape != tuple(state[key].shape))
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"config.json does not match the weights beside it: {key} is {list(header[key].shape)} in the file, but "
            f"{list(state[key].shape)} by the config. Arguments such as img_size= decide"
        )


def _check_pixels(name: str, value: Any, header: Mapping[str, Stored]) -> None:
    """Refuse images with more pixels than the file's position embedding covers with the largest patches."""
    shape = header["pos_embed"].shape if "pos_embed" in header else ()
    sides = _numbers(value)[-2:]
    pixels = math.prod(sides * 2 if len(sides) == 1 else sides)  # one number is the side of a square
    if len(shape) == 3 and pixels > shape[1] * LARGEST_PATCH**2:
        raise InvalidFileError(_too_large(name, value, f"at most {shape[1] * LARGEST_PATCH**2:,} pixels"))


def _too_large(name: str, value: Any, limit: str) -> str:
    return (
        f"config.json: {name} = {short(value)} is more than the weights beside it allow: {limit}, by the tensors in "
        "the file"
    )


def _numbers(value: Any) -> list[Any]:
    return [number for number in (value if isinstance(value, (list, tuple)) else [value]) if is_number(number)]
