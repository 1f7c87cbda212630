"""Folders that are written completely or not at all. Leftovers of killed processes are removed later."""

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
"""Put before the prefix of a scratch folder until its lock is held, so that no other process removes it as dead."""


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield an empty folder that is removed at the end. First remove those left behind by killed processes.

    Args:
        parent: where to create it.
        prefix: start of its name; a folder with this prefix and an unheld lock belongs to a dead process.
    """
    for orphan in parent.glob(f"{prefix}*"):
        _remove_if_dead(orphan)
    folder = Path(tempfile.mkdtemp(prefix=_STARTING + prefix, dir=parent))
    try:
        with FileLock(folder / _LOCK):
            (folder / "content").mkdir()
            with suppress(OSError):  # Windows cannot rename a folder with an open file; then it is never swept
                folder = folder.rename(folder.with_name(folder.name.removeprefix(_STARTING)))
            yield folder / "content"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_dead(folder: Path) -> None:
    with suppress(OSError, Timeout):  # in use by a live process, or already gone
        if _is_mine(folder) and (folder / _LOCK).is_file():
            with FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder / "content", ignore_errors=True)
            shutil.rmtree(folder)


def _is_mine(folder: Path) -> bool:
    stat = folder.lstat()
    return S_ISDIR(stat.st_mode) and stat.st_uid == getattr(os, "getuid", lambda: stat.st_uid)()


@contextmanager
def replacing(folder: Path, last: str, belonging: Collection[str] = (), overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder. At the end its files replace those in ``folder``: all of them or none.

    Everything is written before anything is replaced, and an error restores the old files. Identical files are not
    touched. While files move, ``last`` is absent if it changes, so a kill leaves a visibly incomplete folder, never a
    mixture of old and new. A lock keeps other processes out meanwhile.

    Args:
        folder: where the files go; created if needed. Other files in it stay.
        last: the file without which the others are not used.
        belonging: old files to remove because they would not match the new ones.
        overwrite: whether files with other content may be replaced.

    Raises:
        ExistingPathError: the folder has other files of these names; nothing was changed.
        OSError: from the file system; nothing was changed.
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
    """Hold a folder's lock, which lies in our cache. Go on without a lock if the cache cannot be written."""
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
    """Move back the files already moved from ``origin`` to ``place``."""
    for name in names:
        if os.path.lexists(place / name) and not os.path.lexists(origin / name):
            with suppress(OSError):  # the original error is the one to report
                os.replace(place / name, origin / name)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and (other.samefile(one) or filecmp.cmp(one, other, shallow=False))


def check_free(folder: Path, names: Collection[str], overwrite: bool = False) -> None:
    """Raise ``ExistingPathError`` if one of these names is a folder, or a file that may not be overwritten."""
    taken = sorted(name for name in names if os.path.lexists(folder / name))
    folders = [name for name in taken if (folder / name).is_dir()]
    if folders:
        raise ExistingPathError(f"{folder} has a folder {folders[0]} where a file must go: name another folder")
    if taken and not overwrite:
        raise ExistingPathError(
            f"{folder} has {' and '.join(taken)} already: name another folder, or replace what is there with "
            "overwrite=True (--overwrite on the command line)"
        )
