"""Locks between processes, and a word to the user who waits for one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds after which it is said what is waited for."""


@contextmanager
def held(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock, whoever has it first.

    Args:
        lock: the lock's file; its folder exists.
        doing: what the other process does meanwhile, for the log.

    Raises:
        OSError: the lock's file cannot be made.
    """
    mine = FileLock(lock)
    try:
        mine.acquire(timeout=PATIENCE)
    except Timeout:
        _logger.warning(f"Waiting for another process, which {doing}; it holds {lock}. Ctrl-C ends the waiting.")
        mine.acquire()
    try:
        yield
    finally:
        mine.release()
