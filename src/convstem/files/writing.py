"""Writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that takes its place only when it is complete; after an error what was there before is untouched.

    Args:
        path: the file; its folder exists.
        write: writes the content to the path it is given, which lies beside ``path``.

    Raises:
        Exception: whatever ``write`` raised, or the file system.
    """
    # Not tempfile's, which only its owner may read: several users may share a folder.
    temporary = path.with_name(f".writing-{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:  # an interrupted write leaves nothing behind either
        with suppress(OSError):
            os.unlink(temporary)
        raise
