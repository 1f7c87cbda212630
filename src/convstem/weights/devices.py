"""Checks the device and dtype of a pretrained model, and copies mapped weights to an accelerator."""

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
"""Error texts of devices without their own error class, such as Apple's and the CPU."""


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a dtype in which a model computes, given as a dtype or by name; None stays None.

    Raises:
        ArgumentError: any other dtype, such as float8, in which torch computes next to nothing.
    """
    found: Any = getattr(torch, dtype.removeprefix("torch."), dtype) if isinstance(dtype, str) else dtype
    if found is None or found in [getattr(torch, name) for name in DTYPES]:
        return found
    raise ArgumentError(f"dtype must be a floating-point type of torch or its name: {', '.join(DTYPES)}; got {dtype!r}")


def check_device(device: Any) -> None:
    """Raise ``ArgumentError`` unless a model can be loaded onto a device; None is torch's default device.

    torch must have the device, no graph capture may be running on it, and modules must keep their values, unlike under
    accelerate's ``init_empty_weights``.

    The check creates an empty tensor, so it works for any backend and torch gives the reason. On an accelerator this
    creates the context, before anything is downloaded.
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
            "pretrained weights would be lost: load the model outside it, or leave out pretrained"
        )


def _captures(device: torch.device) -> bool:
    """Return whether the device's current stream is being captured into a graph, as by ``torch.cuda.graph``."""
    module = getattr(torch, device.type, None)
    initialised, asked = (getattr(module, name, None) for name in ("is_initialized", "is_current_stream_capturing"))
    return bool(initialised and asked and initialised() and asked())


def devices() -> list[str]:
    """Return the names of the devices that torch has here."""
    accelerator = getattr(torch, "accelerator", None)  # new in torch 2.6
    if accelerator is None or not accelerator.is_available():
        return ["cpu"]
    kind = accelerator.current_accelerator().type
    return ["cpu", *(f"{kind}:{index}" for index in range(accelerator.device_count()))]


@contextmanager
def enough_memory(dtype: torch.dtype | None = None) -> Iterator[None]:
    """Turn a device's out-of-memory error into ``DeviceMemoryError``, and free the half-built model.

    Args:
        dtype: of the model; default: torch's default.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or _FULL.search(str(error))):
            raise
        # The traceback's frames hold the half-built model as long as the caller keeps the exception.
        traceback.clear_frames(error.__traceback__)
        half = torch.finfo(dtype or torch.get_default_dtype()).bits <= 16
        smaller = "" if half else ", or load with dtype=torch.bfloat16, which takes half"
        said = ". ".join(str(error).splitlines()[0].split(". ")[:2]).rstrip(".")
        raise DeviceMemoryError(f"the device has no room for the model ({said}): free memory there{smaller}") from None


@contextmanager
def off_meta(kwargs: dict[str, Any]) -> Iterator[None]:
    """Keep a pretrained model off the meta device, where its weights would be lost silently.

    Args:
        kwargs: the builder's arguments; ``device`` is removed if it is the meta device.

    Warns:
        UserWarning: the meta device is requested or is the default; the model is loaded on the CPU.
    """
    default = torch.empty(0).device  # get_default_device of torch 2.6 does not see `with torch.device(...)`
    if torch.device(kwargs.get("device") or default).type != "meta":
        yield
        return
    warn(
        "the meta device holds no values, so the pretrained model was loaded on the CPU. For a model without values, "
        "leave out pretrained"
    )
    kwargs.pop("device", None)
    with torch.device("cpu"):
        yield


def check_cast(model: nn.Module) -> None:
    """Raise ``ArgumentError`` if finite weights became Inf in a float16 model; the largest float16 is 65,504."""
    if next(model.parameters()).dtype != torch.float16:  # a model is built in one type
        return
    half = {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.float16}
    lost = [] if nonfinite_allowed() else nonfinite(half)
    if lost:
        raise ArgumentError(
            f"float16 cannot hold weights beyond 65,504: {some_of(lost)} became Inf. Load with dtype=torch.bfloat16, "
            "which reaches as far as float32"
        )


BUFFERS = 3
"""One is sent, one waits, one is filled."""

BUFFER_BYTES = 16 << 20
"""Large enough for the bus's full rate, small compared with a model."""

THREADS = 2
"""Threads that fill a buffer; more than a few gain nothing, because memory is the limit."""

ALIGNMENT = 64
"""Tensors start at multiples of this many bytes in a buffer, so that any dtype can be viewed there."""


@dataclass(frozen=True)
class Move:
    """One tensor to copy: ``target`` gets the values of ``source``, cast on the CPU if the dtypes differ."""

    target: Tensor
    source: Tensor

    @property
    def width(self) -> int:
        """Bytes per element in a buffer."""
        return self.target.element_size()

    @property
    def room(self) -> int:
        """Bytes in a buffer, alignment included."""
        return _aligned(self.target.numel() * self.width)


@dataclass(frozen=True)
class Piece:
    """Elements ``start`` to ``stop`` of one move, at ``offset`` bytes of a buffer."""

    move: Move
    start: int
    stop: int
    offset: int

    def of_source(self) -> Tensor:
        """Return the piece on the CPU, flat."""
        return self.move.source.view(-1)[self.start : self.stop]

    def of_target(self) -> Tensor:
        """Return the piece on the device, flat."""
        return self.move.target.view(-1)[self.start : self.stop]

    def of_buffer(self, buffer: Tensor) -> Tensor:
        """Return the piece in a buffer of bytes, in the target's dtype."""
        size = (self.stop - self.start) * self.move.width
        return buffer[self.offset : self.offset + size].view(self.move.target.dtype)


class Copier(Protocol):
    """All access to the device; tests replace it to count calls."""

    def buffer(self, size: int) -> Tensor:
        """Return a buffer of bytes that the device can read directly.

        Raises:
            RuntimeError: no such memory is left.
        """
        ...

    def send(self, pieces: Sequence[Piece], buffer: Tensor) -> Any:
        """Start the copy of filled pieces to their targets and return a ticket for ``wait``."""
        ...

    def wait(self, ticket: Any) -> None:
        """Return when the buffer of this ticket may be filled again."""
        ...

    def finish(self) -> None:
        """Return when all copies have arrived."""
        ...


class DeviceCopier:
    """Copies on its own stream, on any accelerator with streams (``torch.get_device_module``)."""

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
        """Wait for the event after the last copy from a buffer."""
        ticket.synchronize()

    def finish(self) -> None:
        """Wait until the stream's copies have arrived."""
        self.stream.synchronize()


def has_streams(device: torch.device) -> bool:
    """Return whether a device copies asynchronously; otherwise a plain copy is as good."""
    if device.type in ("cpu", "meta", "mps"):
        return False
    try:
        module = torch.get_device_module(device)
    except RuntimeError:  # a backend without its own module, such as torch_xla
        return False
    return all(hasattr(module, name) for name in ("Event", "Stream", "current_stream", "stream"))


@torch.no_grad()
def transfer(
    moves: Sequence[Move], copier: Copier, buffers: int = BUFFERS, size: int = BUFFER_BYTES, threads: int = THREADS
) -> None:
    """Give every target the values of its source; return when all have arrived.

    Args:
        moves: contiguous targets on the device and contiguous sources on the CPU, of the same shapes.
        copier: accesses the device.
        buffers: maximum number of buffers that take turns.
        size: maximum bytes of each buffer.
        threads: number of threads that fill a buffer together.
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
                # Most of the time goes to the page faults of a mapped file, which threads share.
                list(workers.map(partial(_read, buffer=pool[slot]), pieces))
                tickets[slot] = copier.send(pieces, pool[slot])
    finally:  # even if interrupted: a copy under way could otherwise write into memory that is already reused
        _finish(copier)


def _pool(copier: Copier, count: int, size: int) -> list[Tensor]:
    """Return at most ``count`` buffers: a container may let a process pin little memory, or none."""
    pool: list[Tensor] = []
    with suppress(RuntimeError):
        for _ in range(count):
            pool.append(copier.buffer(size))
    return pool


def _finish(copier: Copier) -> None:
    """Wait for all copies, even if the user presses Ctrl-C again; then raise the ``KeyboardInterrupt``."""
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
    """Cut moves into pieces and yield, in order, lists of pieces that fit into one buffer.

    Args:
        moves: the tensors to copy.
        size: bytes of the buffer.
        longest: maximum bytes of a piece, so that several threads have work.
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
