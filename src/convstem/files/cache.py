"""What convstem keeps between runs, beside the Hub's cache: notes about files whose content was checked.

Everything here can be made again, so a cache that cannot be read or written costs time and is never an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from convstem.files.paths import path_errors, write_whole

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
    """Return the cache folder: ``CONVSTEM_CACHE``, or ``convstem`` in huggingface_hub's home; else one never there."""
    from huggingface_hub import constants

    path = os.path.expanduser(os.environ.get("CONVSTEM_CACHE") or os.path.join(constants.HF_HOME, "convstem"))
    # Users without a home, as containers have them: a folder called ~ in the current one is not what anybody meant.
    return Path(os.devnull) / "convstem" if path.startswith("~") else Path(path)


def entries() -> list[Entry]:
    """Return the files of the cache, sorted by kind and name."""
    return [entry for kind in KINDS for path in sorted((root() / kind).glob("*")) for entry in _entry(kind, path)]


def _entry(kind: str, path: Path) -> list[Entry]:
    """Return the entry of a file, or none if another process has removed it meanwhile."""
    try:
        return [Entry(kind, path, path.stat().st_size)]
    except FileNotFoundError:
        return []


def clear() -> int:
    """Remove everything and return the bytes that were freed; models that are loaded, or being loaded, keep working.

    Raises:
        PathError: the cache cannot be written.
    """
    freed = 0
    for entry in entries():
        with path_errors("clear", entry.path.parent), suppress(FileNotFoundError):
            entry.path.unlink()
            freed += entry.size
    return freed


def store(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file of the cache; one that cannot be written is merely forgotten.

    Args:
        path: the file; its folder is made if it is missing.
        write: see ``write_whole``.
    """
    with suppress(Exception):  # a full disk reaches us as whatever the writing library makes of it
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
