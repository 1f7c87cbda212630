"""The runs of an experiment: several at a time, in processes that share the threads, and a line for each that is done.

``runs.jsonl`` has one JSON object a line, in the order in which the runs ended.
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
"""What is kept of a run."""


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add a run to a file, in one write at its end, so that processes that do it at the same time do not mix lines.

    Raises:
        OSError: there is no room for the line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = f"{json.dumps(row)}\n".encode()
    with path.open("ab", buffering=0) as file:
        if file.write(line) != len(line):
            raise OSError(f"{path} has a line that was cut off, for lack of room: remove the line, and run again")


def read_lines(path: Path) -> list[Row]:
    """Return the runs in a file, oldest first; none where there is no file.

    Raises:
        ValueError: a line is no JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [_parse(path, number, line) for number, line in enumerate(lines, 1)]


def _parse(path: Path, number: int, line: str) -> Row:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"expected JSON in line {number} of {path}; got {error}: remove it, and run again") from error


def by_name(folder: Path) -> dict[str, Row]:
    """Return the runs in a folder's file, by the name that is their ``run``."""
    return {row["run"]: row for row in read_lines(folder / RUNS)}


def carry_out(
    work: Callable[..., Found], calls: Mapping[Key, tuple[Any, ...]], jobs: int, total: int
) -> Iterator[tuple[Key, Found]]:
    """Yield each call's key and what it returned, as they end; show a progress bar.

    Args:
        work: what a process calls, of a module that it can import.
        calls: the arguments of each call, in the order to begin with.
        jobs: processes at a time.
        total: how many runs there are with those that were done before.

    Raises:
        Exception: the first error of a run, after those that were under way beside it have ended and were yielded.
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
