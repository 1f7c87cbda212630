"""What was found out about files, remembered from run to run: one note for each file and question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from convstem.files.cache import root, store

_NOTES: dict[Path, dict[str, Any]] = {}
"""The notes of this process, which hold where the cache cannot be written."""


class Note:
    """The answer to one question about a file's content, true while the file's size and time of change stay.

    Args:
        path: the file; a link counts as the file it leads to.
        question: what is asked, so that one file can be asked several.

    Raises:
        OSError: there is no such file.
    """

    def __init__(self, path: Path, question: str) -> None:
        stat = path.stat()  # now: what changes while the answer is being found makes the note stale
        self._about = {"file": str(path.resolve()), "question": question}
        self._state = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        name = hashlib.sha256(json.dumps(self._about).encode()).hexdigest()[:32]
        self._path = root() / "checked" / f"{name}.json"
        self._kept = _NOTES.get(self._path) or _read(self._path)

    @property
    def answer(self) -> str:
        """The latest answer, perhaps about an earlier content; empty if there is none."""
        return str(self._kept.get("answer", ""))

    @property
    def current(self) -> bool:
        """Whether there is an answer and the file is still the one it was found for."""
        return self._kept == {**self._about, **self._state, "answer": self.answer}

    def keep(self, answer: str) -> None:
        """Remember an answer that was found after this note was taken up."""
        self._kept = _NOTES[self._path] = {**self._about, **self._state, "answer": answer}
        store(self._path, lambda temporary: temporary.write_text(json.dumps(self._kept), encoding="utf-8"))


def check_once(path: Path, question: str, check: Callable[[], object]) -> None:
    """Run a check of a file's content unless it passed before and the file is still the same.

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
    """Yield every note in the cache: where it lies, and what it says."""
    for path in sorted((root() / "checked").glob("*.json")):
        note = _read(path)
        if "file" in note:
            yield path, note


def forget(path: Path) -> None:
    """Remove a note, so that the next use of its file checks it."""
    _NOTES.pop(path, None)
    with suppress(OSError):
        path.unlink()
