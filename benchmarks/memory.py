"""Peak memory of a function, measured in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function returns when nothing ran before it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *args, **kwargs).result()


def status(field: str) -> int:
    """Return bytes from this process's status: ``VmRSS`` is what it has in memory, ``VmHWM`` the most it had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak() -> int:
    """Forget the most that this process had in memory; return what it has now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")
