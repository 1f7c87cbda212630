"""A stand-in for an accelerator: it counts copies, and copies as late as an asynchronous device may."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convstem.weights.devices import Piece


class FakeCopier:
    """A copy happens only when it is waited for, as late as an asynchronous device may."""

    def __init__(self) -> None:
        self.pending: dict[int, tuple[Sequence[Piece], Tensor]] = {}
        self.buffers = self.buffered = self.sent = self.bytes = self.most_pending = self.waits = 0
        self.finished = False

    def buffer(self, size: int) -> Tensor:
        self.buffers += 1
        self.buffered += size
        return torch.full((size,), 0xAB, dtype=torch.uint8)

    def send(self, pieces: Sequence[Piece], buffer: Tensor) -> int:
        self.sent += 1
        self.bytes += sum(piece.of_buffer(buffer).nbytes for piece in pieces)
        self.pending[self.sent] = (pieces, buffer)
        self.most_pending = max(self.most_pending, len(self.pending))
        return self.sent

    def wait(self, ticket: Any) -> None:
        self.waits += 1
        pieces, buffer = self.pending.pop(ticket)
        for piece in pieces:
            piece.of_target().copy_(piece.of_buffer(buffer))

    def finish(self) -> None:
        for ticket in list(self.pending):
            self.wait(ticket)
        self.finished = True
