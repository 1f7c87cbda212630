"""What convstem keeps between runs, beside the Hub's cache: transplanted stems, and which files were checked.

Everything here can be made again, so a cache that cannot be read or written costs time and is never an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

KINDS = ("checked", "stems")
"""Folders of the cache: notes about files whose content was checked, and transplanted stems."""


_CHECKED: set[Path] = set()
"""Notes that this process has found already, so that it need not look for them again."""


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
    """Remove everything and return the bytes that were freed; models that are loaded keep working."""
    size = sum(entry.size for entry in entries())
    for kind in KINDS:
        with suppress(FileNotFoundError):
            shutil.rmtree(root() / kind)
    _CHECKED.clear()
    return size


def store(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that other processes see all of it or nothing; a cache that cannot be written merely forgets.

    Args:
        path: the file.
        write: writes the content to the path it is given.
    """
    # Not tempfile's, which only its owner may read: several users may share a cache.
    temporary = path.with_name(f".writing-{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except Exception:  # a full disk reaches us as whatever the writing library makes of it
        with suppress(OSError):
            os.unlink(temporary)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock of a cache file, where the cache can be written: the others wait, then find it done."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    lock = root() / "locks" / f"{path.name}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError:
        yield
        return
    with WeakFileLock(lock):
        yield


def check_once(path: Path, question: str, check: Callable[[], object]) -> None:
    """Run a check of a file's content unless it passed before and the file is still the same.

    Args:
        path: the file; its size and time of change tell whether it is the same.
        question: what is checked, so that one file can be asked several.
        check: raises if the file is bad.
    """
    stat = path.stat()
    about = [str(path.resolve()), question, stat.st_size, stat.st_mtime_ns]
    note = root() / "checked" / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    if note in _CHECKED or note.exists():
        _CHECKED.add(note)
        return
    check()
    _CHECKED.add(note)
    store(note, lambda temporary: temporary.write_text(json.dumps(about), encoding="utf-8"))
