"""Runs many trainings, several at a time; each leaves a line in ``runs.jsonl`` and a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.cifar10 import data
from experiments.cifar10.settings import BFLOAT16, Settings, changes
from experiments.cifar10.training import DivergedError, Training, train
from experiments.runs import RUNS, Row, append_line, by_name, carry_out

DIVERGED = "diverged"
"""Key of the error message in the line of a diverged training."""


@dataclass(frozen=True)
class Where:
    """The folders of images and results, the device, and how many trainings share it."""

    data_dir: Path
    out: Path
    device: str = "cpu"
    jobs: int = 1

    def checkpoint(self, name: str) -> Path:
        """Return the folder of a training's checkpoint."""
        return self.out / "runs" / name

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> Where:
        """Return the values of the flags of ``add_flags``."""
        return cls(args.data_dir, args.out, args.device, args.jobs)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``Where``."""
    parser.add_argument("--data-dir", type=Path, required=True, help="image folder written by tools/cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="destination directory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, which share the cores")


def add_bfloat16(parser: argparse.ArgumentParser) -> None:
    """Add a flag with the settings that it changes as its value."""
    text = "faster on processors with bfloat16 arithmetic"
    parser.add_argument("--bfloat16", action="store_const", const=BFLOAT16, default={}, help=text)


def is_done(done: Mapping[str, Row], name: str, settings: Settings) -> bool:
    """Return whether a training has ended: at the last epoch, or because it diverged.

    Raises:
        ValueError: it had other settings.
    """
    if name in done and (changed := changes(done[name]["settings"], settings)):
        raise ValueError(f"{name} was trained with {changed}: choose another --out, or the same settings")
    return name in done


def train_one(name: str, settings: Settings, where: Where) -> Row:
    """Train to the last epoch, or until it diverges, and return the record."""
    images, test = data.read(where.data_dir, settings, where.device)
    training = Training(settings, images, where.device)
    try:
        train(training, test, where.checkpoint(name))
    except DivergedError as error:
        return {**training.record(), DIVERGED: str(error)}
    return training.record()


def kept(out: Path, name: str, settings: Settings, work: Callable[[], Row]) -> Row:
    """Return a training's line in a folder's file; do the training first if it is missing."""
    done = by_name(out)
    if not is_done(done, name, settings):
        done[name] = {"run": name, **work()}
        append_line(out / RUNS, done[name])
    return done[name]


def run_all(
    trainings: Mapping[str, Settings], where: Where, work: Callable[[str, Settings, Where], Row] = train_one
) -> None:
    """Do the missing trainings, in processes that share the threads; show a progress bar.

    Args:
        trainings: settings by name.
        where: its folder of results gets a line for each training that ends.
        work: does one training in a process and returns its record.
    """
    done = by_name(where.out)
    todo = {name: settings for name, settings in trainings.items() if not is_done(done, name, settings)}
    calls = {name: (name, settings, where) for name, settings in todo.items()}
    for name, row in carry_out(work, calls, where.jobs, len(trainings)):
        append_line(where.out / RUNS, {"run": name, **row})
