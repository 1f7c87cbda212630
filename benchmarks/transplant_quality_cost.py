"""Time and memory that a transplant takes, for benchmarks/transplant_quality.py."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from subprocess import run

import timm

from benchmarks.transplant_quality_table import Row
from convstem import transplant

SCRIPT = "benchmarks.transplant_quality"
"""What a process of its own runs, with ``--probe``."""

REPEATS = 3
"""Processes for each cost: a machine that does other work as well stalls one now and then."""


def probe(name: str) -> dict[str, float]:
    """Return seconds and extra peak memory (GiB) of one transplant; for a process that does nothing else.

    Args:
        name: timm architecture, with random weights.
    """
    model = timm.create_model(name).eval()
    before = resident("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    transplant(model)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    copy = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"seconds": seconds, "cpu": cpu, "gib": resident("VmHWM") - before, "copy": copy / 2**30}


def resident(field: str) -> float:
    """Return GiB of memory in use (``VmRSS``) or its peak (``VmHWM``); Linux only.

    ``resource.getrusage`` will not do: a child's ``ru_maxrss`` starts at the memory of the process that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


def cost_rows(case: str, name: str, seconds: float) -> list[Row]:
    """Return time and memory of a transplant: median time and largest memory of REPEATS processes of their own.

    Args:
        case: its name.
        name: timm architecture.
        seconds: bar.
    """
    command = [sys.executable, "-m", SCRIPT, "--probe", name]
    outputs = [run(command, capture_output=True, text=True, check=True).stdout for _ in range(REPEATS)]
    costs = {key: [json.loads(output)[key] for output in outputs] for key in ("seconds", "cpu", "gib", "copy")}
    walls, busy = (", ".join(f"{value:.1f}" for value in costs[key]) for key in ("seconds", "cpu"))
    timing, copied = f"runs: {walls}; processor time: {busy}", f"of which the returned model {costs['copy'][0]:.2f}"
    return [
        Row(f"{case}: wall time of transplant (s)", seconds, median(costs["seconds"]), form="{:.1f}", note=timing),
        Row(f"{case}: extra peak memory of transplant (GiB)", 1.5, max(costs["gib"]), form="{:.2f}", note=copied),
    ]
