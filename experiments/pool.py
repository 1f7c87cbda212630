"""Runs in several processes that share the threads: an error stops what has not begun, and loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import torch
from torch import multiprocessing
from tqdm import tqdm

Key = TypeVar("Key")
Found = TypeVar("Found")


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
