"""The user's files: errors of the file system, writing a whole file or nothing, locks between processes."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from convstem.errors import ConvStemError, MissingPathError, PathError

_REMEDIES = {
    errno.EACCES: "change its permissions, or name another path",
    errno.EDQUOT: "free some space, or name a path on another disk",
    errno.ENOENT: "check the path, and create its folder first",
    errno.ENOSPC: "free some space, or name a path on another disk",
    errno.ENOTDIR: "one of its folders is a file",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "name a path on another disk",
}


def readable(path: str | os.PathLike[str]) -> str:
    """Return a path as text that can always be printed: bytes that are not UTF-8 become question marks."""
    return os.fsencode(path).decode("utf-8", "replace").replace("\N{REPLACEMENT CHARACTER}", "?")


@contextmanager
def path_errors(doing: str, path: str | Path) -> Iterator[None]:
    """Turn file system errors raised inside the block into ``PathError``.

    Args:
        doing: verb for the message, such as ``read`` or ``write``.
        path: the file or folder that the user named.
    """
    from safetensors import SafetensorError  # imports numpy

    try:
        yield
    except ConvStemError:
        raise
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number is None and not isinstance(error, OSError):
            raise
        kind = MissingPathError if number == errno.ENOENT else PathError
        reason = os.strerror(number) if number else str(error)
        raise kind(f"cannot {doing} {path}: {reason}; {_REMEDIES.get(number or 0, 'name another path')}") from error


def _error_number(error: Exception) -> int | None:
    """Return an error's errno; safetensors, written in Rust, has it only in the message."""
    number: int | None = getattr(error, "errno", None)
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if number is None and told else number


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it. After an error the old file is untouched.

    Args:
        path: the file; its folder must exist.
        write: writes the content to the path it is given, in the same folder.

    Raises:
        Exception: whatever ``write`` or the file system raised.
    """
    # Not a file of tempfile: only its owner may read it, and several users may share a folder.
    temporary = path.with_name(f".writing-{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:  # clean up after an interrupt too
        with suppress(OSError):
            os.unlink(temporary)
        raise


_logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds of waiting before a warning says what is being waited for."""


@contextmanager
def held(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock between processes, waiting until it is free.

    Args:
        lock: the lock file; its folder must exist.
        doing: what the other process is doing, for the log.

    Raises:
        OSError: the lock file cannot be created.
    """
    mine = FileLock(lock)
    try:
        mine.acquire(timeout=PATIENCE)
    except Timeout:
        _logger.warning(f"Waiting for another process, which {doing}; it holds {lock}. Ctrl-C stops waiting.")
        mine.acquire()
    try:
        yield
    finally:
        mine.release()
