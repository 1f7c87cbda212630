"""Transplanted stems, kept under the content they were computed from: the second load of a tag computes nothing.

The key is a hash of the patch embedding itself and of everything else the result depends on, so that a stem can only
be found for the very weights it belongs to, whichever file, repository or commit they come from.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convstem.files import cache
from convstem.registry.stem_spec import StemSpec
from convstem.transplanting.algebra import ALGORITHM
from convstem.transplanting.pixels import PixelRange
from convstem.transplanting.report import LayerReport, TransplantReport

_PAGE = 4096
"""Bytes of a page, the unit in which memory and disks go wrong."""


Transplanted: TypeAlias = tuple[dict[str, Tensor], TransplantReport]


def cached_transplant(
    weight: Tensor,
    bias: Tensor | None,
    stem: StemSpec,
    pixel_range: PixelRange | None,
    margin: float,
    compute: Callable[[], Transplanted],
) -> Transplanted:
    """Return a transplanted stem from the cache, or compute and keep it.

    Args:
        weight, bias, stem, pixel_range, margin: see ``transplant_stem``; they make the key.
        compute: returns the stem's state dict and its report.
    """
    box = pixel_range and [*map(list, pixel_range)]
    settings = [ALGORITHM, str(weight.dtype), list(weight.shape), stem.model_args, box, margin]
    path = cache.root() / "stems" / f"{_key(settings, weight, bias)}.safetensors"
    found = _read(path)
    if found is None:
        with cache.one_at_a_time(path):
            found = _read(path)  # another process may have been faster
            if found is None:
                found = compute()
                state, report = found
                facts = {"keys": list(state), "checksum": _checksum(state), "report": asdict(report)}
                metadata = {"convstem": json.dumps(facts)}
                cache.store(path, lambda temporary: save_file(state, temporary, metadata))
    return found


def recheck() -> dict[Path, bool]:
    """Return whether each kept stem is still what was kept; one that is not is removed, and computed when needed."""
    stems = {path: _read(path) is not None for path in sorted((cache.root() / "stems").glob("*.safetensors"))}
    for path, right in stems.items():
        if not right:
            path.unlink(missing_ok=True)
    return stems


def _key(settings: Any, weight: Tensor, bias: Tensor | None) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    for tensor in (weight, bias):
        if tensor is not None:
            digest.update(_bytes(tensor).data)
    return digest.hexdigest()


def _read(path: Path) -> Transplanted | None:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["convstem"])
            state = {key: file.get_tensor(key) for key in facts["keys"]}  # in their order, which the file forgets
        if facts["checksum"] == _checksum(state):
            return state, _report(facts["report"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        pass  # not there, or damaged: it is computed again
    return None


def _checksum(state: dict[str, Tensor]) -> int:
    """Return a number that changes with any flipped bit and with the order of tensors and of their pages.

    Sums of pages, and a checksum over the sums: milliseconds, where a hash would take much of the load.
    """
    total = 0
    for tensor in state.values():
        content = _bytes(tensor)
        whole = len(content) // _PAGE * _PAGE
        sums = content[:whole].view(numpy.int64).reshape(-1, _PAGE // 8).sum(1)
        total = zlib.crc32(content[whole:], zlib.crc32(sums, total))
    return total


def _bytes(tensor: Tensor) -> Any:
    """Return a tensor's content as a numpy array of bytes."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _report(fields: dict[str, Any]) -> TransplantReport:
    layers = tuple(LayerReport(**layer) for layer in fields.pop("layers"))
    return TransplantReport(layers, **fields)
