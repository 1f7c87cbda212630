"""What a training step costs on this machine, and what makes it faster.

    OMP_NUM_THREADS=2 python -m experiments.cifar10.speed             # table: images per second of each variant
    OMP_NUM_THREADS=2 python -m experiments.cifar10.speed --trace 20  # the 20 most expensive operations of a step

The images are random, so no data are needed; a step includes augmentation, as in training. The variants take turns and
the median counts, so that other load on the machine affects all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from experiments.cifar10.data import Split, batches, move
from experiments.cifar10.models import POOLED
from experiments.cifar10.settings import BFLOAT16, Settings
from experiments.cifar10.training import Training
from experiments.machine import environment, in_words
from tools.cifar10 import CLASSES, SIZE

TEACHER = Settings(model="convnet", batch_size=256)
VARIANTS: dict[str, Settings] = {
    "nano4 as it ships, AdamW": Settings(opt="adamw"),
    "the same, timm's muon": Settings(opt="muon"),
    "the same, its matrices stacked, float32": Settings(),
    "the same, bfloat16 autocast": Settings(amp=True),
    "the same, bfloat16, attention not fused": Settings(**BFLOAT16),
    "attention not fused, float32": Settings(fused_attn=False),
    "average pooling: 64 tokens": Settings(model_kwargs=POOLED),
    "batch 256": Settings(model_kwargs=POOLED, batch_size=256),
    "batch 512": Settings(model_kwargs=POOLED, batch_size=512),
    "batch 512, average of weights": Settings(model_kwargs=POOLED, batch_size=512, model_ema_decay=0.999),
    "batch 512, images of 24 pixels": Settings(model_kwargs=POOLED, batch_size=512, small_epochs=8),
    "the teacher": TEACHER,
    "the teacher, bfloat16 autocast": replace(TEACHER, amp=True),
}


class Timed:
    """A training that takes and times single steps."""

    def __init__(self, settings: Settings) -> None:
        pixels = torch.randint(256, (2 * settings.batch_size, 3, SIZE, SIZE), dtype=torch.uint8)
        data = move(Split(pixels, torch.arange(len(pixels)) % len(CLASSES)), "cpu")
        self.training = Training(settings, data)
        self.training.model.train()
        self.batches = self.endless(data)
        self.updates = count()
        self.times: list[float] = []

    def endless(self, data: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield batches of images and their rows forever."""
        for _ in count():
            yield from batches(data, 0, self.training.settings)

    def step(self) -> None:
        """Take one step and keep its time in seconds."""
        begin = time.perf_counter()
        images, rows = next(self.batches)
        self.training.step(images, self.training.targets(rows, None), min(next(self.updates), self.training.steps))
        self.times.append(time.perf_counter() - begin)

    def gflop(self) -> float:
        """Return the GFLOP of a step's forward and backward pass."""
        with FlopCounterMode(display=False) as flops:
            self.step()
        return flops.get_total_flops() / 1e9


def table(rounds: int) -> list[str]:
    """Return the lines of the table."""
    timed = {name: Timed(settings) for name, settings in VARIANTS.items()}
    work = {name: variant.gflop() for name, variant in timed.items()}
    for variant in timed.values():
        variant.times.clear()
    for _ in tqdm(range(rounds), "rounds", leave=False):
        for variant in timed.values():
            variant.step()
    lines = [f"{'variant':<40}{'ms a step':>11}{'images a second':>17}{'GFLOP/s':>10}"]
    for name, variant in timed.items():
        seconds = statistics.median(variant.times)
        size = variant.training.settings.batch_size
        lines.append(f"{name:<40}{1000 * seconds:>11.0f}{size / seconds:>17.0f}{work[name] / seconds:>10.0f}")
    return lines


def trace(name: str, rows: int) -> str:
    """Return the most expensive operations of ten steps of a variant."""
    variant = Timed(VARIANTS[name])
    variant.step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(10):
            variant.step()
    return found.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=60)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each variant")
    parser.add_argument("--trace", type=int, metavar="ROWS", help="print this many rows of a profile instead")
    parser.add_argument(
        "--variant", default="average pooling: 64 tokens", choices=list(VARIANTS), help="variant to profile"
    )
    parser.add_argument("--out", type=Path, help="also write the table here")
    args = parser.parse_args(argv)
    lines = [trace(args.variant, args.trace)] if args.trace else table(args.rounds)
    text = "\n".join([in_words(environment(packages=("torch", "timm"))), "", *lines]) + "\n"
    print(text, end="")
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
