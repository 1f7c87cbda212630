"""What a result was measured on."""

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
        jobs: how many processes of as many threads each run side by side; None where the one that asks cannot know.
        packages: whose versions matter.
        device: what computes; its name is added where it is not the processor.
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
    """Return what ``environment`` returned as a line of a report."""
    return f"{info['machine']}; " + ", ".join(f"{name} {number}" for name, number in info["versions"].items())


def machines(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the lines of all machines and versions on which these runs ran."""
    return sorted({in_words(run["environment"]) for run in runs})


def cpu_name() -> str:
    """Return the processor's name where the system tells it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {names[0]}" if names else platform.machine()
