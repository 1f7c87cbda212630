"""What convstem keeps between runs, beside the Hub's cache: notes about files whose content was checked.

Everything here can be made again, so a cache that cannot be read or written costs time and is never an error.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from convstem.files.paths import path_errors
from convstem.files.writing import write_whole

KINDS = ("checked",)
"""Folders of the cache."""


@dataclass(frozen=True)
class Entry:
    """One file of the cache."""

    kind: str
    path: Path
    size: int
    """Bytes."""


def root() -> Path:
    """Return the cache folder: ``CONVSTEM_CACHE``, or ``convstem`` in huggingface_hub's home."""
    from huggingface_hub import constants

    return Path(os.environ.get("CONVSTEM_CACHE") or Path(constants.HF_HOME) / "convstem").expanduser()


def entries() -> list[Entry]:
    """Return the files of the cache, sorted by kind and name."""
    found = ((kind, path) for kind in KINDS for path in sorted((root() / kind).glob("*")))
    return [Entry(kind, path, path.stat().st_size) for kind, path in found]


def clear() -> int:
    """Remove everything and return the bytes that were freed; models that are loaded keep working.

    Raises:
        PathError: the cache cannot be written.
    """
    size = sum(entry.size for entry in entries())
    for folder in (root() / kind for kind in KINDS):
        with path_errors("clear", folder), suppress(FileNotFoundError):
            shutil.rmtree(folder)
    return size


def store(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file of the cache; one that cannot be written is merely forgotten.

    Args:
        path: the file; its folder is made if it is missing.
        write: see ``write_whole``.
    """
    with suppress(Exception):  # a full disk reaches us as whatever the writing library makes of it
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
