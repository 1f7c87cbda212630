"""Notes on files whose content was checked, kept between runs beside the Hub's cache.

Everything here can be recomputed, so an unreadable or unwritable cache costs time but is no error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Return the cache folder: ``CONVSTEM_CACHE``, or ``convstem`` in huggingface_hub's home.

    Without a home directory, return a path that can never exist.
    """
    from huggingface_hub import constants

    path = os.path.expanduser(os.environ.get("CONVSTEM_CACHE") or os.path.join(constants.HF_HOME, "convstem"))
    # A container's user may have no home; do not create a folder named ~ in the current directory.
    return Path(os.devnull) / "convstem" if path.startswith("~") else Path(path)


def entries() -> list[Entry]:
    """Return the files of the cache, sorted by kind and name."""
    return [entry for kind in KINDS for path in sorted((root() / kind).glob("*")) for entry in _entry(kind, path)]


def _entry(kind: str, path: Path) -> list[Entry]:
    """Return the entry of a file, or an empty list if another process has removed the file."""
    try:
        return [Entry(kind, path, path.stat().st_size)]
    except FileNotFoundError:
        return []


def clear() -> int:
    """Remove every file of the cache and return the bytes freed. Models loaded or being loaded keep working.

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
    """Write a file of the cache, ignoring errors.

    Args:
        path: the file; its folder is created if missing.
        write: see ``write_whole``.
    """
    with suppress(Exception):  # the writing library may raise anything when the disk is full
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)


_NOTES: dict[Path, dict[str, Any]] = {}
"""This process's notes, used even where the cache cannot be written."""


class Note:
    """The answer to one question about a file's content, valid while its size and modification time are unchanged.

    Args:
        path: the file; a link stands for its target.
        question: identifies the check; a file can have a note per question.

    Raises:
        OSError: no such file.
    """

    def __init__(self, path: Path, question: str) -> None:
        stat = path.stat()  # taken before the check: a change during the check makes the note stale
        self._about = {"file": str(path.resolve()), "question": question}
        self._state = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        name = hashlib.sha256(json.dumps(self._about).encode()).hexdigest()[:32]
        self._path = root() / "checked" / f"{name}.json"
        self._kept = _NOTES.get(self._path) or _read(self._path)

    @property
    def answer(self) -> str:
        """The latest answer, possibly for earlier content; empty if there is none."""
        return str(self._kept.get("answer", ""))

    @property
    def current(self) -> bool:
        """Whether there is an answer and the file is unchanged since."""
        return self._kept == {**self._about, **self._state, "answer": self.answer}

    def keep(self, answer: str) -> None:
        """Store an answer found after this note was created."""
        self._kept = _NOTES[self._path] = {**self._about, **self._state, "answer": answer}
        store(self._path, lambda temporary: temporary.write_text(json.dumps(self._kept), encoding="utf-8"))


def check_once(path: Path, question: str, check: Callable[[], object]) -> None:
    """Run a check of a file's content, unless it passed before and the file is unchanged.

    Args:
        path, question: see ``Note``.
        check: raises if the file is bad.
    """
    note = Note(path, question)
    if not note.current:
        check()
        note.keep("passed")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def kept() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the path and content of every note in the cache."""
    for path in sorted((root() / "checked").glob("*.json")):
        note = _read(path)
        if "file" in note:
            yield path, note


def forget(path: Path) -> None:
    """Remove a note, so that the next use of its file checks it again."""
    _NOTES.pop(path, None)
    with suppress(OSError):
        path.unlink()
