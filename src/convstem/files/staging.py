"""Folders that appear complete or not at all, and leave nothing behind even when their process is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR

from filelock import FileLock, Timeout

_LOCK = ".lock"


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield an empty folder that is removed at the end, and first remove those that killed processes left behind.

    Args:
        parent: where it lies.
        prefix: of its name; a folder of this prefix whose lock nobody holds is a dead process's.
    """
    for orphan in parent.glob(f"{prefix}*"):
        _remove_if_dead(orphan)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        with FileLock(folder / _LOCK):
            (folder / "content").mkdir()
            yield folder / "content"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_dead(folder: Path) -> None:
    with suppress(OSError, Timeout):  # a living process's, or already gone
        if _is_mine(folder) and (folder / _LOCK).is_file():
            with FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder / "content", ignore_errors=True)
            shutil.rmtree(folder)


def _is_mine(folder: Path) -> bool:
    stat = folder.lstat()
    return S_ISDIR(stat.st_mode) and stat.st_uid == getattr(os, "getuid", lambda: stat.st_uid)()


@contextmanager
def replacing(folder: Path, last: str) -> Iterator[Path]:
    """Yield an empty folder whose files, at the end, take the places of those of ``folder``; all of them or none.

    Everything is written before anything is replaced, so that an error or a full disk changes nothing. While the files
    move, ``last`` is missing: a kill in between leaves a folder that says so, never a mixture of old and new.

    Args:
        folder: where the files go; created if needed, other files in it stay.
        last: the file without which the others are not used.

    Raises:
        OSError: what the file system says; nothing was changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder, ".convstem-") as staged:
        yield staged
        names = sorted((path.name for path in staged.iterdir()), key=lambda name: name == last)
        (folder / last).unlink(missing_ok=True)
        for name in names:
            os.replace(staged / name, folder / name)
