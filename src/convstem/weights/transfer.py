"""Moves mapped weights to an accelerator: a few reused pinned buffers, filled by threads, copied without waiting.

A tensor of a mapped file lies in pageable memory. Copied one by one, each is read from the disk, moved into a buffer of
the driver and sent, one step after the other. Here the steps overlap: while one buffer is on its way, threads fill the
next one. The host needs no more memory than the buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    """One tensor on its way: ``target`` gets the values of ``source``, cast on the device if the dtypes differ."""

    target: Tensor
    source: Tensor


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
        """Return the piece in a buffer of bytes, in the source's dtype."""
        size = (self.stop - self.start) * self.move.source.element_size()
        return buffer[self.offset : self.offset + size].view(self.move.source.dtype)


class Copier(Protocol):
    """What touches the device; tests replace it to count."""

    def buffer(self, size: int) -> Tensor:
        """Return a buffer of bytes that the device can read without the driver's help."""
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
        self.device = device
        self.stream = self.module.Stream(device=device)
        self.stream.wait_stream(self.module.current_stream(device))  # the targets may still be in use there

    def buffer(self, size: int) -> Tensor:
        """Return a pinned buffer."""
        return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)

    def send(self, pieces: Sequence[Piece], buffer: Tensor) -> Any:
        """Start the copies; a cast happens on the device, from a copy in the source's dtype."""
        with self.module.stream(self.stream):
            for piece in pieces:
                values = piece.of_buffer(buffer)
                if piece.move.source.dtype != piece.move.target.dtype:
                    values = values.to(self.device, non_blocking=True)
                piece.of_target().copy_(values, non_blocking=True)
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
    return device.type not in ("cpu", "meta", "mps") and hasattr(torch.get_device_module(device), "Stream")


@torch.no_grad()
def transfer(
    moves: Sequence[Move], copier: Copier, buffers: int = BUFFERS, size: int = BUFFER_BYTES, threads: int = THREADS
) -> None:
    """Give every target the values of its source; returns once all have arrived.

    Args:
        moves: contiguous targets on the device and contiguous sources on the host, of the same shapes.
        copier: what touches the device.
        buffers: how many buffers take turns, at least 2.
        size: bytes of each buffer.
        threads: how many fill a buffer together.
    """
    pool = [copier.buffer(size) for _ in range(buffers)]
    tickets: dict[int, Any] = {}
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="convstem-transfer") as workers:
            for turn, pieces in enumerate(batches(moves, size, size // threads)):
                slot = turn % buffers
                if slot in tickets:
                    copier.wait(tickets[slot])
                # The page faults of a mapped file are what takes the time here, and threads share them.
                list(workers.map(partial(_read, buffer=pool[slot]), pieces))
                tickets[slot] = copier.send(pieces, pool[slot])
    finally:  # when interrupted too: what is still on its way would be written into memory that others have by then
        copier.finish()


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
        width, start = move.source.element_size(), 0
        while start < move.source.numel():
            room = min(size - used, longest) // width
            if room == 0:
                yield pieces
                pieces, used = [], 0
                continue
            stop = min(move.source.numel(), start + room)
            pieces.append(Piece(move, start, stop, used))
            end = used + (stop - start) * width
            used, start = min(-(-end // ALIGNMENT) * ALIGNMENT, size), stop
    if pieces:
        yield pieces
