"""Train one model on CIFAR-10, with all images in memory and augmented one batch at a time.

    python -m tools.cifar10 DATA
    python -m experiments.cifar10 --data-dir DATA --out OUT --model vit_nano4_convstem --epochs 8 --threads 2

OUT gets ``last.pth.tar`` at the end of each epoch, and one line in ``runs.jsonl`` at the end. It can be interrupted or
killed: the same command continues from the last complete epoch, to the same result. timm's train.py does not promise
this, because it saves no random state; it also lacks reflected crops, alternating flips and saved teacher logits. All
else is timm's: models, optimizers, schedules, mixing, averages of weights, loss.

``--teacher FOLDER`` is the OUT of another training; ``--teacher-share`` is its probabilities' share of the target.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from experiments.cifar10 import sweep
from experiments.cifar10.settings import add_flags, from_flags
from experiments.cifar10.training import DivergedError, run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="image folder written by tools/cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="destination directory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's choice")
    parser.add_argument("--teacher", type=Path, help="folder of a finished training")
    add_flags(parser)
    args = parser.parse_args(argv)
    if bool(args.teacher) != bool(args.teacher_share):
        parser.error("--teacher and --teacher-share are needed together")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        settings = from_flags(args)
        row = sweep.kept(
            args.out,
            settings.model,
            settings,
            partial(run, settings, args.data_dir, args.out, args.device, args.teacher),
        )
    except (DivergedError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    accuracy = row["epochs"][-1]["accuracy"]
    print(f"{accuracy:.2f} %; {row['hours']:.2f} hours, {row['cpu_hours']:.2f} of processor time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
