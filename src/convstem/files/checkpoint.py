"""Reads checkpoints of any kind without running code from them."""

from __future__ import annotations

import argparse
import json
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from convstem.errors import InvalidFileError, MissingPathError
from convstem.files.paths import path_errors
from convstem.files.safetensors import read_weights
from convstem.layouts.comparison import some_of

LARGEST_RATIO = 100
"""Largest accepted compression ratio; weights hardly compress."""

SPARE = 1 << 24
"""Bytes allowed on top of that ratio, for small files of zeros."""

CHECKPOINTS = (".pt", ".pth", ".tar")
"""Suffixes of files that timm's train.py writes."""


_INDEX = ".index.json"
"""Suffix of an index, which maps each tensor to one of several files."""

_FOREIGN = {
    ".gguf": ("a GGUF file of llama.cpp", "the gguf package reads it"),
    ".h5": ("an HDF5 file, as Keras writes them", "h5py or Keras reads it"),
    ".keras": ("a Keras 3 model", "Keras reads it"),
    ".msgpack": ("a Flax msgpack file", "flax.serialization.msgpack_restore reads it"),
    ".onnx": ("an ONNX graph", "onnx reads it, and onnxruntime runs it"),
    ".pb": ("a TensorFlow graph", "TensorFlow reads it"),
    ".tflite": ("a TensorFlow Lite model", "LiteRT runs it"),
}
"""Suffix -> (what the file is, what reads it)."""

_MAGIC = {(0, b"GGUF"): ".gguf", (0, b"\x89HDF\r\n\x1a\n"): ".h5", (4, b"TFL3"): ".tflite"}
"""(Offset, magic bytes) -> suffix. The bytes count, whatever the file is called."""


def _refuse_foreign(path: Path) -> None:
    """Raise ``InvalidFileError`` naming the file's format if that format holds no torch state dict."""
    with path.open("rb") as file:
        start = file.read(16)
    told = [kind for (at, magic), kind in _MAGIC.items() if start[at:].startswith(magic)]
    kind = told[0] if told else path.suffix.lower()
    if kind in _FOREIGN:
        what, reads = _FOREIGN[kind]
        raise InvalidFileError(
            f"{path.name} is {what}, not a checkpoint of torch or JAX: {reads}. Save the weights of the same model "
            "from torch, or as a flat .npz with the names of a layout that convstem reads"
        )
    if start.startswith(b"PK") and _is_torchscript(path):
        raise InvalidFileError(
            f"{path.name} is a TorchScript archive, which holds code with its weights, so it was not opened. If you "
            "trust it, save only its weights, in Python: torch.save(torch.jit.load(FILE).state_dict(), NEW)"
        )


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _read_shards(index: Path) -> dict[str, Any]:
    """Return the tensors of all files that an index names; the files must lie beside it."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidFileError(f"{index.name} is not an index of weights: it has no weight_map") from error
    odd = [name for name in names if Path(name).name != name]
    if odd:
        raise InvalidFileError(f"{index.name} may only name files beside it; got {some_of(odd)}")
    found: dict[str, Any] = {}
    for name in names:
        found |= read_checkpoint(index.with_name(name))
    lost = [key for key in places if key not in found]
    if lost:
        raise InvalidFileError(f"{index.name} names tensors that its files do not have: {some_of(lost)}")
    return found


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint: a state dict, or a training script's dictionary around one.

    Args:
        path: a file written by safetensors, torch.save or JAX (.npz), or the index of several files.

    Raises:
        MissingPathError: no such file.
        InvalidFileError: truncated, damaged, another format, or a pickle of more than tensors and plain values, which
            is not opened.
    """
    if not path.is_file():
        raise MissingPathError(f"there is no file {path}: give the path of a checkpoint")
    with path_errors("read", path):
        if path.name.endswith(_INDEX):
            return _read_shards(path)
        _refuse_foreign(path)
        if path.suffix == ".safetensors":
            return dict(read_weights(path))
        content = _read_npz(path) if path.suffix == ".npz" else _read_pickle(path)
    if not isinstance(content, dict):
        raise InvalidFileError(
            f"{path.name} holds a {type(content).__name__}, not a dictionary: expected a state dict or a training "
            "checkpoint"
        )
    return content


def open_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint written by timm's train.py.

    Raises:
        InvalidFileError: not such a checkpoint, or it cannot be opened.
    """
    checkpoint = read_checkpoint(path)
    if "arch" not in checkpoint:
        raise InvalidFileError(
            f"{path.name} is not a checkpoint of timm's train.py: it does not name its architecture; "
            f"`convstem convert {path.name} --out FOLDER` recognises it by its tensors, and FOLDER can be pushed"
        )
    return checkpoint


def _read_pickle(path: Path) -> Any:
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts save their arguments
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on damaged bytes torch raises IndexError, KeyError, AssertionError, ...
        names = _code_in(path)
        if names:
            asks = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            raise InvalidFileError(
                f"{path.name} cannot be opened without running code from it, so it was not; it needs {asks}. If you "
                "trust it, save only its tensors, in Python: "
                "torch.save(torch.load(FILE, weights_only=False).state_dict(), NEW)"
            ) from error
        raise InvalidFileError(
            f"{path.name} ({path.stat().st_size:,} bytes) is truncated, damaged or not a checkpoint: {_reason(error)}. "
            "convert and push take files from torch.save, safetensors or JAX (.npz)"
        ) from error


def _reason(error: Exception) -> str:
    """Return why torch cannot read a file, without torch's advice to run the code in it."""
    first = next(iter(str(error).splitlines()), "") if isinstance(error, (EOFError, RuntimeError)) else ""
    return first.rstrip(".") if first and "weights_only" not in first else "torch finds no state dict in it"


def _code_in(path: Path) -> list[str]:
    """Return the names of what a pickle would run; empty if they cannot be found."""
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # damaged bytes, as in _read_pickle
        return _names_in_pickle(path)


_NAME = re.compile(r"[A-Za-z_][\w.]*")
"""A name that a pickle can import. The filter matters: a text file starting with c parses as an import of two lines."""


def _names_in_pickle(path: Path) -> list[str]:
    """Return what a plain pickle would import, except torch's own names. The pickle is scanned, never opened."""
    names: set[str] = set()
    strings = ["", ""]
    try:
        with path.open("rb") as file:
            for operation, argument, _ in pickletools.genops(file):
                if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                    parts = argument.split(" ") if argument else strings[-2:]
                    names |= {".".join(parts)} if len(parts) == 2 else set()
                elif isinstance(argument, str):
                    strings.append(argument)
    except (OSError, ValueError):  # not a pickle, or truncated
        return []
    own = ("torch.", "collections.OrderedDict")
    return sorted(name for name in names if _NAME.fullmatch(name) and not name.startswith(own))


def _read_npz(path: Path) -> dict[str, Any]:
    import zlib

    import numpy

    try:
        with path.open("rb") as file:
            _check_claims(file, path.stat().st_size)
            with numpy.load(file, allow_pickle=False) as arrays:
                return {name: _tensor(arrays[name]) for name in arrays.files}
    except (EOFError, MemoryError, OSError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidFileError(f"{path.name} is truncated, damaged or not an .npz of plain arrays: {error}") from error


def _check_claims(file: BinaryIO, size: int) -> None:
    """Raise ``InvalidFileError`` if the arrays of an .npz claim more bytes than the file can hold. Reads headers only.

    Args:
        file: read from its start, and left there.
        size: size of the file in bytes.
    """
    import math
    import zipfile

    from numpy.lib import format as npy

    limit = SPARE + LARGEST_RATIO * size
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        total = sum(member.file_size for member in members)
        if total > limit:
            raise InvalidFileError(f"{size:,} bytes would become {total:,}")
        for member in members:
            with archive.open(member) as array:
                version = npy.read_magic(array)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(array)
                claimed = math.prod(shape) * dtype.itemsize
                if not dtype.hasobject and claimed > member.file_size:
                    raise InvalidFileError(f"{member.filename} claims {claimed:,} bytes but has {member.file_size:,}")
    file.seek(0)


def _tensor(array: Any) -> Any:
    import torch

    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # big_vision's bfloat16, a type that numpy lacks
        return torch.from_numpy(array.view("uint16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array)
