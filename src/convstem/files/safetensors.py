"""Safetensors files: memory-mapped on reading, refused when damaged or mislabelled, readable by all when written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from convstem.errors import InvalidFileError, MissingPathError, PathError
from convstem.files.cache import check_once
from convstem.files.paths import readable
from convstem.layouts.comparison import some_of

ALLOW_NONFINITE: ContextVar[bool] = ContextVar("ALLOW_NONFINITE", default=False)
"""Whether NaN and Inf are accepted. ``convstem.load(allow_nonfinite=True)`` sets it for one load,
``CONVSTEM_ALLOW_NONFINITE=1`` for the whole process. It is no argument because ``timm.create_model`` records every
argument it passes on, so it would end up in saved configs."""

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of files written by ``torch.save`` and ``pickle``."""


class Stored(NamedTuple):
    """What a safetensors header says about one tensor."""

    shape: tuple[int, ...]
    floating: bool
    """Whether it holds floating-point numbers."""


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write contiguous tensors with a new file's usual permissions; safetensors' own files only their owner can read.

    Tensors that share memory, as in tied layers, are written once per name.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(_apart(tensors)), path, metadata={"format": "pt"})
    path.chmod(mode)


def _apart(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors, cloning those that share memory with an earlier one."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        yield name, tensor.clone() if place in seen else tensor
        seen.add(place)


def _check_name(path: Path) -> None:
    """Raise ``PathError`` for a path that the safetensors library cannot open."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise PathError(f"safetensors opens only paths in UTF-8: rename {readable(path)}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, memory-mapped: read from disk on first use.

    Raises:
        MissingPathError: no such file.
        InvalidFileError: not a safetensors file, a damaged one, or weights that are not finite.
    """
    check_weights(path)
    return load_file(path)


def check_weights(path: Path) -> dict[str, Stored]:
    """Check that a safetensors file's values are finite and return its header. The check is remembered.

    Raises:
        MissingPathError: no such file.
        InvalidFileError: not a safetensors file, a damaged one, or weights that are not finite.
    """
    if not path.is_file():
        raise MissingPathError(f"there is no weights file {path}: give the path of a .safetensors file")
    header = check_header(path)
    if not nonfinite_allowed():
        check_once(path, "finite", partial(check_finite_file, path))
    return header


def nonfinite_allowed() -> bool:
    """Return whether NaN and Inf are accepted in weights."""
    return ALLOW_NONFINITE.get() or os.environ.get("CONVSTEM_ALLOW_NONFINITE") == "1"


def check_finite_file(path: Path) -> None:
    """Raise ``InvalidFileError`` naming the tensors of a safetensors file that hold NaN or Inf."""
    check_finite(load_file(path), path.name)


def check_header(path: Path) -> dict[str, Stored]:
    """Return the header of a safetensors file: tensor name -> shape and kind.

    Raises:
        InvalidFileError: not a safetensors file, or a truncated or damaged one.
    """
    _check_name(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            return {key: Stored(tuple(s.get_shape()), "F" in s.get_dtype()) for key, s in slices.items()}
    except SafetensorError as error:
        raise InvalidFileError(_damaged_sentence(path, error)) from error


def _damaged_sentence(path: Path, error: SafetensorError) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLES):
        return (
            f"{path.name} is a pickle named as safetensors: opening it could run any code, so it was not opened. If "
            "you trust it, give it its own suffix, such as .pth, and run `convstem convert`"
        )
    return (
        f"{path.name} is not a valid safetensors file ({error}; {path.stat().st_size:,} bytes): it is truncated, "
        "damaged or of another format. Delete it and fetch it again"
    )


def check_finite(state_dict: Mapping[str, Tensor], where: str) -> None:
    """Raise ``InvalidFileError`` if tensors of a state dict hold NaN or Inf, negative variances or no plain values.

    Args:
        state_dict: the tensors.
        where: name of their source, for the message.
    """
    odd = [name for name, tensor in state_dict.items() if tensor.is_meta or tensor.is_quantized]
    if odd:
        raise InvalidFileError(
            f"{where} holds tensors without values (on the meta device) or quantised ones: {some_of(odd)}. Save the "
            "model's weights as plain numbers"
        )
    negative = [
        name for name, tensor in state_dict.items() if name.endswith("running_var") and bool((_wide(tensor) < 0).any())
    ]
    if negative:
        raise InvalidFileError(
            f"{where} holds negative variances in {some_of(negative)} (their roots are NaN): the weights are probably "
            "damaged"
        )
    bad = nonfinite(state_dict)
    if bad:
        raise InvalidFileError(
            f"{where} holds NaN or Inf in {some_of(bad)}: the weights are probably damaged. If they are "
            "intended, load them with convstem.load(..., allow_nonfinite=True) or CONVSTEM_ALLOW_NONFINITE=1"
        )


def nonfinite(state_dict: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or Inf."""
    return [name for name, tensor in state_dict.items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    tensor = _wide(tensor)
    # A finite sum proves every element finite in one pass. Sums can overflow, so check the elements of a bad one.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _wide(tensor: Tensor) -> Tensor:
    """Return a float8 tensor as float32, since torch cannot compute in float8; others unchanged."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
