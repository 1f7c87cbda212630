"""Hashes again what was verified before: "verified once" goes by size and time, which a dying disk does not change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convstem.files import notes
from convstem.hub.cache import DIGEST, file_digest


@dataclass(frozen=True)
class Recheck:
    """What became of one verified file."""

    file: str
    state: str
    """``right``, ``damaged``, ``unreadable``, ``changed`` (its next use checks it anyway) or ``gone``."""

    @property
    def bad(self) -> bool:
        """Whether the file, or the disk below it, cannot be trusted."""
        return self.state in ("damaged", "unreadable")

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-plain."""
        return asdict(self)


def recheck() -> Iterator[Recheck]:
    """Yield every file whose hash was once compared, hashed anew; a damaged one is fetched again on its next use."""
    for path, note in notes.kept():
        digest = _digest(note)
        if digest:
            state = _state(Path(note["file"]), note, digest)
            if state in ("damaged", "gone"):
                notes.forget(path)
            yield Recheck(note["file"], state)


def _digest(note: dict[str, Any]) -> str:
    """Return the hash that a note is about: that of a file from the Hub, or of one in this package."""
    question = str(note.get("question", ""))
    told = str(note.get("answer", "")) if question == "digest" else question.removeprefix("sha256 ")
    return told if DIGEST.fullmatch(told) else ""


def _state(file: Path, note: dict[str, Any], digest: str) -> str:
    try:
        stat = file.stat()
        if {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns} != {key: note.get(key) for key in ("size", "mtime_ns")}:
            return "changed"
        return "right" if file_digest(file, len(digest)) == digest else "damaged"
    except FileNotFoundError:
        return "gone"
    except OSError:  # a dying disk says so too
        return "unreadable"
