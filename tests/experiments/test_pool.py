"""Several runs at a time: all come back, and an error neither loses the others nor lets new ones begin."""

import time
from pathlib import Path

import pytest

from experiments import pool

FAILS = 1


def run(number: int, folder: Path | None) -> int:
    """Leave a file that says that it began; without a folder, only return."""
    if folder is None:
        return number
    (folder / str(number)).touch()
    if number == FAILS:
        raise ValueError(f"run {number} failed")
    time.sleep(0.2)  # so that the error arrives before the rest is done
    return number


def test_all_runs_come_back_with_their_keys() -> None:
    found = dict(pool.carry_out(run, {f"run {number}": (number, None) for number in range(4)}, 2, 9))
    assert found == {f"run {number}": number for number in range(4)}


def test_after_an_error_no_run_begins_and_none_is_lost(tmp_path: Path) -> None:
    calls = {number: (number, tmp_path) for number in range(30)}
    found = []
    with pytest.raises(ValueError, match="run 1 failed"):
        for number, _ in pool.carry_out(run, calls, 2, 30):
            found.append(number)
    begun = {int(path.name) for path in tmp_path.iterdir()}
    assert set(found) == begun - {FAILS}
    assert 0 in found
    assert len(begun) < len(calls)
