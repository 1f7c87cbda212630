"""Moves mapped weights to an accelerator: a few reused pinned buffers, filled by threads, copied without waiting.

A tensor of a mapped file lies in pageable memory. Copied one by one, each is read from the disk, moved into a buffer of
the driver and sent, one step after the other. Here the steps overlap: while one buffer is on its way, threads fill the
next one. Values are cast to the target's type on their way into the buffer: what is sent is what stays there, and the
device needs no memory beside it. The host needs no more than the buffers, and these are no larger than what is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

BUFFERS = 3
"""One is sent, one waits, one is filled."""

BUFFER_BYTES = 16 << 20
"""Large enough that a copy runs at the bus's full rate, small beside a model."""

THREADS = 2
"""How many fill a buffer; more than a few gain nothing, the memory is the limit."""

ALIGNMENT = 64
"""Where a tensor begins in a buffer, in bytes: any dtype can be viewed there."""


@dataclass(frozen=True)
class Move:
    """One tensor on its way: ``target`` gets the values of ``source``, cast on the host if the dtypes differ."""

    target: Tensor
    source: Tensor

    @property
    def width(self) -> int:
        """Bytes of an element on its way."""
        return self.target.element_size()

    @property
    def room(self) -> int:
        """Bytes that it takes in a buffer."""
        return _aligned(self.target.numel() * self.width)


@dataclass(frozen=True)
class Piece:
    """Elements ``start`` to ``stop`` of one move, at ``offset`` bytes of a buffer."""

    move: Move
    start: int
    stop: int
    offset: int

    def of_source(self) -> Tensor:
        """Return the piece on the host, flat."""
        return self.move.source.view(-1)[self.start : self.stop]

    def of_target(self) -> Tensor:
        """Return the piece on the device, flat."""
        return self.move.target.view(-1)[self.start : self.stop]

    def of_buffer(self, buffer: Tensor) -> Tensor:
        """Return the piece in a buffer of bytes, in the target's dtype."""
        size = (self.stop - self.start) * self.move.width
        return buffer[self.offset : self.offset + size].view(self.move.target.dtype)


class Copier(Protocol):
    """What touches the device; tests replace it to count."""

    def buffer(self, size: int) -> Tensor:
        """Return a buffer of bytes that the device can read without the driver's help.

        Raises:
            RuntimeError: there is none.
        """
        ...

    def send(self, pieces: Sequence[Piece], buffer: Tensor) -> Any:
        """Start the copy of filled pieces to their targets and return a ticket for ``wait``."""
        ...

    def wait(self, ticket: Any) -> None:
        """Return once the buffer of this ticket may be filled again."""
        ...

    def finish(self) -> None:
        """Return once everything has arrived."""
        ...


class DeviceCopier:
    """Copies on a stream of its own, on any accelerator with streams (``torch.get_device_module``)."""

    def __init__(self, device: torch.device) -> None:
        self.module = torch.get_device_module(device)
        self.stream = self.module.Stream(device=device)
        self.stream.wait_stream(self.module.current_stream(device))  # the targets may still be in use there

    def buffer(self, size: int) -> Tensor:
        """Return a pinned buffer."""
        return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)

    def send(self, pieces: Sequence[Piece], buffer: Tensor) -> Any:
        """Start the copies."""
        with self.module.stream(self.stream):
            for piece in pieces:
                piece.of_target().copy_(piece.of_buffer(buffer), non_blocking=True)
            event = self.module.Event()
            event.record(self.stream)
        return event

    def wait(self, ticket: Any) -> None:
        """Wait for the event behind the last copy from a buffer."""
        ticket.synchronize()

    def finish(self) -> None:
        """Wait for the stream, and let the current one see what it wrote."""
        self.stream.synchronize()


def has_streams(device: torch.device) -> bool:
    """Tell whether a device copies asynchronously; where it does not, a plain copy is as good."""
    if device.type in ("cpu", "meta", "mps"):
        return False
    try:
        module = torch.get_device_module(device)
    except RuntimeError:  # a backend without a module of its own, such as torch_xla's
        return False
    return all(hasattr(module, name) for name in ("Event", "Stream", "current_stream", "stream"))


@torch.no_grad()
def transfer(
    moves: Sequence[Move], copier: Copier, buffers: int = BUFFERS, size: int = BUFFER_BYTES, threads: int = THREADS
) -> None:
    """Give every target the values of its source; returns once all have arrived.

    Args:
        moves: contiguous targets on the device and contiguous sources on the host, of the same shapes.
        copier: what touches the device.
        buffers: how many buffers take turns at most.
        size: bytes of each buffer at most.
        threads: how many fill a buffer together.
    """
    total = sum(move.room for move in moves)
    size = min(size, max(total, threads * ALIGNMENT))
    pool = _pool(copier, min(buffers, -(-total // size)), size)
    if not pool:
        for move in moves:
            move.target.copy_(move.source)
        return
    tickets: dict[int, Any] = {}
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="convstem-transfer") as workers:
            for turn, pieces in enumerate(batches(moves, size, size // threads)):
                slot = turn % len(pool)
                if slot in tickets:
                    copier.wait(tickets[slot])
                # The page faults of a mapped file are what takes the time here, and threads share them.
                list(workers.map(partial(_read, buffer=pool[slot]), pieces))
                tickets[slot] = copier.send(pieces, pool[slot])
    finally:  # when interrupted too: what is still on its way would be written into memory that others have by then
        _finish(copier)


def _pool(copier: Copier, count: int, size: int) -> list[Tensor]:
    """Return as many buffers as there are to be had; a container may let a process pin little memory, or none."""
    pool: list[Tensor] = []
    with suppress(RuntimeError):
        for _ in range(count):
            pool.append(copier.buffer(size))
    return pool


def _finish(copier: Copier) -> None:
    """Wait until everything has arrived, even for users who press Ctrl-C again meanwhile; it is told afterwards."""
    interrupts: list[KeyboardInterrupt] = []
    while True:
        try:
            copier.finish()
            break
        except KeyboardInterrupt as interrupt:
            interrupts.append(interrupt)
    if interrupts:
        raise interrupts[-1]


def _read(piece: Piece, buffer: Tensor) -> None:
    piece.of_buffer(buffer).copy_(piece.of_source())


def batches(moves: Sequence[Move], size: int, longest: int) -> Iterator[list[Piece]]:
    """Cut moves into pieces and yield those that fit one buffer together, in order.

    Args:
        moves: what is to be moved.
        size: bytes of the buffer.
        longest: bytes of a piece at most, so that several threads have something to do.
    """
    pieces: list[Piece] = []
    used = 0
    for move in moves:
        width, start = move.width, 0
        while start < move.source.numel():
            room = min(size - used, longest) // width
            if room == 0:
                yield pieces
                pieces, used = [], 0
                continue
            stop = min(move.source.numel(), start + room)
            pieces.append(Piece(move, start, stop, used))
            end = used + (stop - start) * width
            used, start = min(_aligned(end), size), stop
    if pieces:
        yield pieces


def _aligned(size: int) -> int:
    """Return the next multiple of ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT
