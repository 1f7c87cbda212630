"""The machine and versions of a result."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("convstem", "torch", "timm", "torchvision")


def environment(jobs: int | None = None, packages: Sequence[str] = PACKAGES, device: str = "cpu") -> dict[str, Any]:
    """Return machine and versions.

    Args:
        jobs: number of processes, of as many threads each, that run at a time; None if the caller cannot know.
        packages: packages to list with their versions.
        device: where the result is computed; the name of a GPU is added.
    """
    machine = f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if jobs is not None:
        machine += f", {jobs} jobs"
    if device.startswith("cuda"):
        machine = f"{torch.cuda.get_device_name(device)}; {machine}"
    return {
        "machine": machine,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def in_words(info: Mapping[str, Any]) -> str:
    """Return the result of ``environment`` as a line of a report."""
    return f"{info['machine']}; " + ", ".join(f"{name} {number}" for name, number in info["versions"].items())


def machines(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one line for each set of machine and versions of these runs."""
    return sorted({in_words(run["environment"]) for run in runs})


def cpu_name() -> str:
    """Return the architecture and, if the system tells it, the CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {names[0]}" if names else platform.machine()
