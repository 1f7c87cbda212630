"""The runs of an experiment: several at a time, in processes that share the threads, with a line for each finished run.

``runs.jsonl`` has one JSON object per line, in the order in which the runs ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import multiprocessing
from tqdm import tqdm

RUNS = "runs.jsonl"

Key = TypeVar("Key")
Found = TypeVar("Found")
Row = dict[str, Any]
"""The record of a run."""


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a run to a file in a single write, so that simultaneous processes do not mix lines.

    Raises:
        OSError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = f"{json.dumps(row)}\n".encode()
    with path.open("ab", buffering=0) as file:
        if file.write(line) != len(line):
            raise OSError(f"{path} has a line that was cut off, for lack of room: remove the line, and run again")


def read_lines(path: Path) -> list[Row]:
    """Return the runs in a file, oldest first; none if there is no file.

    Raises:
        ValueError: a line is not JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [_parse(path, number, line) for number, line in enumerate(lines, 1)]


def _parse(path: Path, number: int, line: str) -> Row:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"expected JSON in line {number} of {path}; got {error}: remove it, and run again") from error


def by_name(folder: Path) -> dict[str, Row]:
    """Return the runs in a folder's file, by name (their field ``run``)."""
    return {row["run"]: row for row in read_lines(folder / RUNS)}


def carry_out(
    work: Callable[..., Found], calls: Mapping[Key, tuple[Any, ...]], jobs: int, total: int
) -> Iterator[tuple[Key, Found]]:
    """Yield each call's key and result as it ends; show a progress bar.

    Args:
        work: function to call in a process, from an importable module.
        calls: the arguments of each call, in starting order.
        jobs: processes at a time.
        total: number of runs, including those done before.

    Raises:
        Exception: the first error of a run, raised after the other runs under way have ended and were yielded.
    """
    threads = max(torch.get_num_threads() // jobs, 1)
    errors = []
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        futures = {pool.submit(work, *arguments): key for key, arguments in calls.items()}
        for future in tqdm(as_completed(futures), "runs", total, initial=total - len(calls)):
            if future.cancelled():
                continue
            if error := future.exception():
                errors.append(error)
                for waiting in futures:
                    waiting.cancel()
            else:
                yield futures[future], future.result()
    if errors:
        raise errors[0]
