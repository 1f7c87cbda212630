"""Faults: what goes wrong, on which request, how often."""

import re
import threading
from dataclasses import dataclass


@dataclass
class Fault:
    """One fault, injected into the first ``times`` requests that match after ``skip`` of them.

    Args:
        method, path: which requests; ``path`` is a regular expression that the path has to contain.
        origin: ``hub`` or ``cdn``.
        times, skip: how often, after how many matching requests.
        ranged: True only for resumed requests, False only for those from the start.
        status, headers: answer with this status instead.
        flip: flip this byte of the body (negative: from the end).
        truncate: send only this many bytes, and claim that these are all.
        drop, reset: close the connection after this many bytes, normally or with a TCP reset.
        stall: send this many bytes, then nothing.
        hide: leave out these response headers.
        replace: send these header values instead.
        lost_reply: handle the request, then close the connection without an answer.
        once_only: signed URLs made for this request are valid for one use.
        wait: seconds to wait before the answer.
    """

    method: str = "GET"
    path: str = ""
    origin: str = "cdn"
    times: int = 1
    skip: int = 0
    ranged: bool | None = None
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    flip: int | None = None
    truncate: int | None = None
    drop: int | None = None
    reset: int | None = None
    stall: int | None = None
    hide: tuple[str, ...] = ()
    replace: tuple[tuple[str, str], ...] = ()
    lost_reply: bool = False
    once_only: bool = False
    wait: float = 0.0
    hits: int = 0


class Faults:
    """The armed faults."""

    def __init__(self) -> None:
        self.armed: list[Fault] = []
        self.lock = threading.Lock()

    def take(self, origin: str, method: str, path: str, start: int) -> Fault:
        """Return the fault for a request, or one without effect."""
        with self.lock:
            for fault in self.armed:
                if (fault.origin, fault.method) != (origin, method) or not re.search(fault.path, path):
                    continue
                if fault.ranged is not None and fault.ranged != bool(start):
                    continue
                fault.hits += 1
                if fault.skip < fault.hits <= fault.skip + fault.times:
                    return fault
        return Fault()
