"""A lock is let go of at the end, whatever happened and whoever still holds the error."""

from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from convstem.files.paths import held


def test_a_lock_is_free_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with held(lock, "writes"), pytest.raises(Timeout):  # negative control
        FileLock(lock).acquire(timeout=0)
    with pytest.raises(ZeroDivisionError) as caught, held(lock, "writes"):
        _ = 1 // 0
    with FileLock(lock).acquire(timeout=0):
        assert caught.value.__traceback__ is not None  # whose frames hold whatever was theirs
