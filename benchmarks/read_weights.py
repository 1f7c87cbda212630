"""Compares reading a weights file mapped and by ``pread`` (safetensors 0.9), for the CPU and into transfer buffers.

    python -m benchmarks.read_weights [--model vit_b16_convstem] [--repeats 9]

``to the buffers`` is the CPU's half of a load to an accelerator, without the copies; ``pread to the buffers`` is its
lower limit, for a file that goes to the device byte for byte.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.load import machine
from convstem.weights.devices import BUFFER_BYTES, BUFFERS, THREADS, Move, Piece, transfer


class NoDevice:
    """Accepts all buffers and copies nothing."""

    def buffer(self, size: int) -> Tensor:
        """Return a buffer that is already in memory."""
        return torch.ones(size, dtype=torch.uint8)

    def send(self, pieces: Sequence[Piece], buffer: Tensor) -> Any:
        """Do nothing."""

    def wait(self, ticket: Any) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


def main() -> None:
    """Print the median of each way to read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b16_convstem")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    print(machine("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(timm.create_model(arguments.model).state_dict(), path)
        print(f"{arguments.model}, {path.stat().st_size / 1e6:.0f} MB, medians of {arguments.repeats}, warm file cache")
        for name, run in ways(path).items():
            print(f"{name:32}{1e3 * median(run, arguments.repeats):8.1f} ms")


def ways(path: Path) -> dict[str, Callable[[], Any]]:
    """Return the ways to read, by name."""
    table: dict[str, Callable[[], Any]] = {
        "mapped": partial(load_file, path),
        "mapped, every value read": lambda: read(load_file(path)),
        "mapped, to the buffers": lambda: to_buffers(load_file(path)),
        "pread to the buffers": partial(pread_to_buffers, path),
    }
    if safetensors.__version__ >= "0.9":
        by_pread: Any = partial(load_file, backend="pread")
        table |= {"pread": lambda: by_pread(path), "pread, every value read": lambda: read(by_pread(path))}
    return table


def median(run: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of a function, after one run that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def read(state: dict[str, Tensor]) -> None:
    """Read every value once."""
    for tensor in state.values():
        tensor.sum()


def to_buffers(state: dict[str, Tensor]) -> None:
    """Move tensors through the buffers, but to no device."""
    transfer([Move(tensor, tensor) for tensor in state.values()], NoDevice())


def pread_to_buffers(path: Path) -> None:
    """Read a file into as many and as large buffers, with as many threads."""
    pool = [memoryview(bytearray(b"\1" * BUFFER_BYTES)) for _ in range(BUFFERS)]
    part = BUFFER_BYTES // THREADS
    with path.open("rb") as file, ThreadPoolExecutor(THREADS) as workers:

        def fill(start: int) -> None:
            buffer = pool[start // BUFFER_BYTES % BUFFERS]
            offset = start % BUFFER_BYTES
            os.preadv(file.fileno(), [buffer[offset : offset + part]], start)

        list(workers.map(fill, range(0, path.stat().st_size, part)))


if __name__ == "__main__":
    main()
