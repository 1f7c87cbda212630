"""A lock is released at the end, even if an error occurred and is still referenced."""

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
        assert caught.value.__traceback__ is not None  # its frames keep their local variables alive
