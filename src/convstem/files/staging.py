"""Folders that appear complete or not at all, and leave nothing behind even when their process is killed."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR

from filelock import FileLock, Timeout

from convstem.errors import ExistingPathError
from convstem.files.cache import root
from convstem.files.paths import held

_LOCK = ".lock"


_SCRATCH = ".convstem-"


_STARTING = ".starting"
"""Before the prefix of a scratch folder that does not hold its lock yet, so that nobody takes it for a dead one."""


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield an empty folder that is removed at the end, and first remove those that killed processes left behind.

    Args:
        parent: where it lies.
        prefix: of its name; a folder of this prefix whose lock nobody holds is a dead process's.
    """
    for orphan in parent.glob(f"{prefix}*"):
        _remove_if_dead(orphan)
    folder = Path(tempfile.mkdtemp(prefix=_STARTING + prefix, dir=parent))
    try:
        with FileLock(folder / _LOCK):
            (folder / "content").mkdir()
            with suppress(OSError):  # Windows does not rename a folder with an open file; nobody sweeps it then
                folder = folder.rename(folder.with_name(folder.name.removeprefix(_STARTING)))
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
def replacing(folder: Path, last: str, belonging: Collection[str] = (), overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder whose files, at the end, take the places of those of ``folder``; all of them or none.

    Everything is written before anything is replaced, and an error in between puts everything back. Files that are
    the same already are not touched. While the files move, ``last`` is missing if it changes: a kill in between leaves
    a folder that says so, never a mixture of old and new. One process at a time does this to a folder.

    Args:
        folder: where the files go; created if needed, other files in it stay.
        last: the file without which the others are not used.
        belonging: files that would make no sense beside the new ones, and go with the old ones.
        overwrite: whether files of another content may be replaced.

    Raises:
        ExistingPathError: the folder has other files of these names; nothing was changed.
        OSError: what the file system says; nothing was changed.
    """
    with _alone(folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with scratch_folder(folder, _SCRATCH) as staged:
                yield staged
                _swap(staged, folder, last, belonging, overwrite)
        except BaseException:
            for path in made:
                with suppress(OSError):
                    path.rmdir()
            raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which lies where nobody's files are; without one where the cache cannot be written."""
    lock = root() / "locks" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError:
        yield
        return
    with held(lock, f"writes {folder}"):
        yield


def _swap(staged: Path, folder: Path, last: str, belonging: Collection[str], overwrite: bool) -> None:
    names = {path.name for path in staged.iterdir()}
    same = {name for name in names if _same(staged / name, folder / name)}
    old = {name for name in {*names, *belonging} - same if os.path.lexists(folder / name)}
    check_free(folder, old, overwrite)
    backup = staged.with_name("old")
    backup.mkdir()
    try:
        for name in sorted(old, key=lambda name: name != last):
            os.replace(folder / name, backup / name)
        for name in sorted(names - same, key=lambda name: name == last):
            os.replace(staged / name, folder / name)
    except BaseException:
        _put_back(staged, folder, names - same)
        _put_back(folder, backup, old)
        raise


def _put_back(origin: Path, place: Path, names: Collection[str]) -> None:
    """Move those of the files back that have been moved from ``origin`` to ``place``."""
    for name in names:
        if os.path.lexists(place / name) and not os.path.lexists(origin / name):
            with suppress(OSError):  # the error that led here is the one to tell
                os.replace(place / name, origin / name)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and (other.samefile(one) or filecmp.cmp(one, other, shallow=False))


def check_free(folder: Path, names: Collection[str], overwrite: bool = False) -> None:
    """Raise ``ExistingPathError`` if a folder has one of these files and it may not be replaced; a folder never is."""
    taken = sorted(name for name in names if os.path.lexists(folder / name))
    folders = [name for name in taken if (folder / name).is_dir()]
    if folders:
        raise ExistingPathError(f"{folder} has a folder {folders[0]} where a file is to be written: write elsewhere")
    if taken and not overwrite:
        raise ExistingPathError(
            f"{folder} has {' and '.join(taken)} already: name another folder, or replace what is there with "
            "overwrite=True (--overwrite on the command line)"
        )
