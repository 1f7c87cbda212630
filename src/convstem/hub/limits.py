"""What a saved model's config may ask for: sizes that the weights beside it can have, before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from convstem.errors import CheckpointError, InvalidFileError
from convstem.files.safetensors import Stored
from convstem.hub.kinds import is_number, short
from convstem.registry.names import FIRST_CONV

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
}
"""Beyond these a config is absurd, and building the model only to find that out would take for ever. All are positive,
but for the classes of a model without head."""


LARGEST_NUMBER = 1 << 20
"""The same for every other number of a config."""


LARGEST_LIST = 512
"""Numbers of a list, such as a stem's channels."""


LARGEST_PATCH = 64
"""Sides of a patch in pixels: with the tokens of a file's position embedding they say how large its images can be."""


def check_sizes(sizes: Iterable[tuple[str, Any]]) -> None:
    """Raise ``InvalidFileError`` if a number of a config is beyond reason, whatever weights lie beside it.

    Args:
        sizes: fields and their values; what is not a number or a list of numbers is skipped.
    """
    for name, value in sizes:
        limit = LARGEST_SIZE.get(name, LARGEST_NUMBER)
        numbers = _numbers(value)
        if len(numbers) > LARGEST_LIST or any(not -limit <= number <= limit for number in numbers):
            raise InvalidFileError(f"config.json: {name} = {short(value)} is absurd; at most {limit:,} is accepted")
        if name in LARGEST_SIZE and any(number <= 0 for number in numbers) and (name, value) != ("num_classes", 0):
            raise InvalidFileError(f"config.json: {name} must be positive; got {short(value)}")


def stated_sizes(args: Mapping[str, Any], cfg: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the fields of a config that say how large a model is, with their values; the same one may occur twice.

    Args:
        args: ``model_args`` of the config.
        cfg: its ``pretrained_cfg``, with the number of classes that the root states.
    """
    return [*args.items(), *((name, cfg[name]) for name in ("input_size", "num_classes") if name in cfg)]


def check_fits_header(args: Mapping[str, Any], cfg: Mapping[str, Any], header: Mapping[str, Stored]) -> None:
    """Refuse a saved model's config that its weights file is too small for, before anything is built.

    Args:
        args, cfg: see ``stated_sizes``.
        header: of the safetensors file.

    Raises:
        InvalidFileError: a size beyond what the file holds, or another number of input channels.
    """
    _check_channels(args, cfg, header)
    sizes = stated_sizes(args, cfg)
    check_sizes(sizes)
    dims = [size for stored in header.values() if math.prod(stored.shape) for size in stored.shape]
    largest = max([*dims, 1 << 10])
    limits = {"depth": len(header), "img_size": largest, "input_size": LARGEST_SIZE["input_size"]}
    for name, value in sizes:
        limit = limits.get(name, largest)
        if any(number > limit for number in _numbers(value)):
            raise InvalidFileError(_too_large(name, value, f"at most {limit:,}"))
        if name in ("img_size", "input_size"):
            _check_pixels(name, value, header)


def _check_channels(args: Mapping[str, Any], cfg: Mapping[str, Any], header: Mapping[str, Stored]) -> None:
    stated = args.get("in_chans") or (cfg.get("input_size") or (None,))[0]
    for name in (f"{FIRST_CONV}.weight", "patch_embed.proj.weight"):
        shape = header[name].shape if name in header else ()
        if stated and len(shape) == 4 and shape[1] != stated:
            raise InvalidFileError(
                f"config.json is not that of the weights beside it: {name} takes {shape[1]} channels, and its "
                f"in_chans or input_size says {stated}"
            )


def check_as_saved(state: Mapping[str, Tensor], header: Mapping[str, Stored]) -> None:
    """Compare a model loaded as its config describes it with its file: nothing may have been adapted on the way.

    timm resizes a position embedding where a config is not the one that its weights were saved with; no caller asked
    for that.

    Args:
        state: the model's state dict.
        header: of the safetensors file, or the part of it that is to be compared.

    Raises:
        CheckpointError: the shapes differ.
    """
    wrong = sorted(key for key in header if key in state and header[key].shape != tuple(state[key].shape))
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"config.json is not that of the weights beside it: {key} is {list(header[key].shape)} in the file, and "
            f"{list(state[key].shape)} by the config. Arguments such as img_size= say which is meant"
        )


def _check_pixels(name: str, value: Any, header: Mapping[str, Stored]) -> None:
    """Refuse images of more pixels than the file's position embedding has tokens for, at the largest patch."""
    shape = header["pos_embed"].shape if "pos_embed" in header else ()
    sides = _numbers(value)[-2:]
    pixels = math.prod(sides * 2 if len(sides) == 1 else sides)  # one number is the side of a square
    if len(shape) == 3 and pixels > shape[1] * LARGEST_PATCH**2:
        raise InvalidFileError(_too_large(name, value, f"at most {shape[1] * LARGEST_PATCH**2:,} pixels"))


def _too_large(name: str, value: Any, limit: str) -> str:
    return (
        f"config.json: {name} = {short(value)} is more than the weights beside it can have been made for: {limit}, by "
        "the tensors in the file"
    )


def _numbers(value: Any) -> list[Any]:
    return [number for number in (value if isinstance(value, (list, tuple)) else [value]) if is_number(number)]
