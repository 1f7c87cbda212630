"""Where a pretrained model goes, a device that is there, holds values and has room; and how mapped weights go there."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from convstem.errors import ArgumentError, DeviceMemoryError, warn
from convstem.files.safetensors import nonfinite, nonfinite_allowed
from convstem.layouts.comparison import some_of
from convstem.upstream import torch_keeps_values

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""Types in which a model computes."""

_FULL = re.compile("out of memory|can't allocate memory", re.IGNORECASE)
"""What devices without an error class of their own say, Apple's and the CPU among them."""


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a type in which a model computes, for itself or its name; None stays None.

    Raises:
        ArgumentError: any other, such as float8, in which torch stores values and computes next to nothing.
    """
    found: Any = getattr(torch, dtype.removeprefix("torch."), dtype) if isinstance(dtype, str) else dtype
    if found is None or found in [getattr(torch, name) for name in DTYPES]:
        return found
    raise ArgumentError(f"dtype must be a floating-point type of torch or its name: {', '.join(DTYPES)}; got {dtype!r}")


def check_device(device: Any) -> None:
    """Raise ``ArgumentError`` unless a model can be loaded onto a device, None for torch's default one.

    torch must have it here, it must be free, and modules must keep values, as they do not under accelerate's
    ``init_empty_weights``.

    torch itself is asked, with a tensor of no elements: so any backend is known, and it says why not. On an accelerator
    that makes its context, before anything is fetched.
    """
    try:
        found = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ArgumentError(
            f"torch cannot put a model on the device {device!r} ({reason}): choose from {', '.join(devices())}"
        ) from error
    if _captures(found):
        raise ArgumentError(
            f"a graph is being captured on {found}, and a model cannot be loaded during a capture: load it before the "
            "capture begins"
        )
    if not torch_keeps_values():
        raise ArgumentError(
            "every parameter is made on the meta device here (as accelerate's init_empty_weights does), where "
            "pretrained weights would be lost: load the model outside of it, or leave pretrained out"
        )


def _captures(device: torch.device) -> bool:
    """Return whether the device's current stream is being captured into a graph, as ``torch.cuda.graph`` does."""
    module = getattr(torch, device.type, None)
    initialised, asked = (getattr(module, name, None) for name in ("is_initialized", "is_current_stream_capturing"))
    return bool(initialised and asked and initialised() and asked())


def devices() -> list[str]:
    """Return the names of the devices that torch has here."""
    accelerator = getattr(torch, "accelerator", None)  # torch 2.6
    if accelerator is None or not accelerator.is_available():
        return ["cpu"]
    kind = accelerator.current_accelerator().type
    return ["cpu", *(f"{kind}:{index}" for index in range(accelerator.device_count()))]


@contextmanager
def enough_memory(dtype: torch.dtype | None = None) -> Iterator[None]:
    """Say in one sentence that a device has no room for the model, and let go of what was on it already.

    Args:
        dtype: of the model; default: torch's default.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or _FULL.search(str(error))):
            raise
        # The frames of the traceback hold the half-built model, for as long as the caller keeps the exception.
        traceback.clear_frames(error.__traceback__)
        half = torch.finfo(dtype or torch.get_default_dtype()).bits <= 16
        smaller = "" if half else ", or load with dtype=torch.bfloat16, which takes half"
        said = ". ".join(str(error).splitlines()[0].split(". ")[:2]).rstrip(".")
        raise DeviceMemoryError(f"the device has no room for the model ({said}): free memory there{smaller}") from None


@contextmanager
def off_meta(kwargs: dict[str, Any]) -> Iterator[None]:
    """Keep a pretrained model off the meta device, where its weights would be lost without a word.

    Args:
        kwargs: the builder's arguments, from which ``device`` is taken away if it is the meta device.

    Warns:
        UserWarning: the meta device was asked for, or is the default device; the model is loaded on the CPU.
    """
    default = torch.empty(0).device  # get_default_device of torch 2.6 does not see `with torch.device(...)`
    if torch.device(kwargs.get("device") or default).type != "meta":
        yield
        return
    warn(
        "the meta device holds no values, and pretrained weights were asked for: the model was loaded on the CPU. For "
        "a model without values leave pretrained out"
    )
    kwargs.pop("device", None)
    with torch.device("cpu"):
        yield


def check_cast(model: nn.Module) -> None:
    """Raise ``ArgumentError`` if finite weights became Inf in a model of float16, whose largest number is 65,504."""
    if next(model.parameters()).dtype != torch.float16:  # a model is built in one type
        return
    half = {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.float16}
    lost = [] if nonfinite_allowed() else nonfinite(half)
    if lost:
        raise ArgumentError(
            f"float16 cannot hold these weights, some of which are beyond 65,504: {some_of(lost)} became Inf. Load "
            "with dtype=torch.bfloat16, which reaches as far as float32"
        )


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
    """Return whether a device copies asynchronously; where it does not, a plain copy is as good."""
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
