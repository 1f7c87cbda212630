"""Many trainings: those that are not finished, several at a time, each in a folder of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments import pool
from experiments.cifar10 import data
from experiments.cifar10.checkpoints import LOG, read_log
from experiments.cifar10.settings import BFLOAT16, Settings, changes
from experiments.cifar10.training import DivergedError, Training, train

DIVERGED = "diverged.txt"
"""In the folder of a training whose loss was lost: the message."""


@dataclass(frozen=True)
class Where:
    """Where the images lie, where the results go, what computes, and how many trainings share it."""

    data_dir: Path
    out: Path
    device: str = "cpu"
    jobs: int = 1

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> Where:
        """Return what the flags of ``add_flags`` say."""
        return cls(args.data_dir, args.out, args.device, args.jobs)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``Where``."""
    parser.add_argument("--data-dir", type=Path, required=True, help="image folder written by tools/cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="destination directory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, which share the cores")


def add_bfloat16(parser: argparse.ArgumentParser) -> None:
    """Add the flag whose value is what it changes in the settings."""
    text = "faster on processors with bfloat16 arithmetic"
    parser.add_argument("--bfloat16", action="store_const", const=BFLOAT16, default={}, help=text)


def finished(folder: Path, settings: Settings, result: str = LOG) -> bool:
    """Return whether a training has reached its last epoch and left a result, or can never reach it.

    Raises:
        ValueError: the folder was begun with other settings.
    """
    if (folder / DIVERGED).exists():
        return True
    if not (folder / LOG).exists():
        return False
    head, rows = read_log(folder)
    if changed := changes(head["settings"], settings):
        raise ValueError(f"{folder} was begun with {changed}: choose another --out, or the same settings")
    return len(rows) == settings.epochs and (folder / result).exists()


def train_one(folder: Path, settings: Settings, where: Where) -> None:
    """Train to the last epoch, or until the loss is lost; then say so in a file."""
    images, test = data.read(where.data_dir, settings, where.device)
    try:
        train(Training(settings, images, where.device), test, folder)
    except DivergedError as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DIVERGED).write_text(f"{error}\n", encoding="utf-8")


def run_all(
    runs: Mapping[str, Settings],
    where: Where,
    work: Callable[[Path, Settings, Where], None] = train_one,
    result: str = LOG,
) -> None:
    """Carry out the runs that are not finished, in processes that share the threads; show a progress bar.

    Args:
        runs: settings by the name of the run, which is its folder in ``where.out / "runs"``.
        work: what a process does with one.
        result: the file in its folder that shows that it is done.
    """
    folders = {name: where.out / "runs" / name for name in runs}
    todo = {name: settings for name, settings in runs.items() if not finished(folders[name], settings, result)}
    calls = {name: (folders[name], settings, where) for name, settings in todo.items()}
    for _ in pool.carry_out(work, calls, where.jobs, len(runs)):
        pass  # each leaves its result in its folder
