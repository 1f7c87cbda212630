"""Parallel runs: all results return, an error keeps running ones but starts no new ones, lines stay whole."""

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import runs

FAILS = 1


def run(number: int, folder: Path | None) -> int:
    """Create a file to show that the run began; without a folder, only return."""
    if folder is None:
        return number
    (folder / str(number)).touch()
    if number == FAILS:
        raise ValueError(f"run {number} failed")
    time.sleep(0.2)  # so that the error arrives before the others finish
    return number


@pytest.mark.full
def test_all_runs_come_back_with_their_keys() -> None:
    found = dict(runs.carry_out(run, {f"run {number}": (number, None) for number in range(4)}, 2, 9))
    assert found == {f"run {number}": number for number in range(4)}


@pytest.mark.full
def test_after_an_error_no_run_begins_and_none_is_lost(tmp_path: Path) -> None:
    calls = {number: (number, tmp_path) for number in range(30)}
    found = []
    with pytest.raises(ValueError, match="run 1 failed"):
        for number, _ in runs.carry_out(run, calls, 2, 30):
            found.append(number)
    begun = {int(path.name) for path in tmp_path.iterdir()}
    assert set(found) == begun - {FAILS}
    assert 0 in found
    assert len(begun) < len(calls)


LONG = "x" * 20_000
LINES = 30


def in_two_writes(path: Path, row: Any) -> None:
    with path.open("ab", buffering=0) as file:
        line = json.dumps(row) + "\n"
        file.write(line[:9].encode())
        time.sleep(0.001)
        file.write(line[9:].encode())


def append_many(append: Callable[[Path, Any], None], path: Path, process: int, start: Any) -> None:
    start.wait()
    for number in range(LINES):
        append(path, {"run": f"{process}-{number}", "text": LONG})


@pytest.mark.parametrize(("append", "whole"), [(in_two_writes, False), (runs.append_line, True)])
def test_lines_of_several_processes_do_not_mix(
    append: Callable[[Path, Any], None], whole: bool, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    processes = [context.Process(target=append_many, args=(append, tmp_path / runs.RUNS, n, start)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if whole:
        found = runs.by_name(tmp_path)
        assert set(found) == {f"{process}-{number}" for process in range(3) for number in range(LINES)}
        assert {row["text"] for row in found.values()} == {LONG}
    else:
        with pytest.raises(ValueError, match="expected JSON in line "):
            runs.by_name(tmp_path)


def test_a_line_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / runs.RUNS
    assert runs.read_lines(path) == []
    runs.append_line(path, {"run": "a"})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"run": "b", "set')
    with pytest.raises(ValueError, match=rf"expected JSON in line 2 of {path}; got .*: remove it, and run again"):
        runs.read_lines(path)
