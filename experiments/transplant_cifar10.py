"""A trained classifier, transplanted, keeps its accuracy and fine-tunes as well as the original.

A small patchify ViT is trained on CIFAR-10, and its patch embedding is transplanted to a conv stem. Then:

1. Same function: predictions of both on all test images, in float32 and under bfloat16 autocast. Controls: the same
   model with a re-initialised stem, with fresh and with re-estimated BatchNorm statistics.
2. Fine-tuning on CIFAR-10 for the same steps: the patchify model, the transplant, the transplant with frozen
   BatchNorm, and a re-initialised stem. For one seed, all see the same batches.
3. BatchNorm drift: how far train-mode forward passes, without weight updates, move the transplant from its source.

    python -m tools.cifar10 DATA
    OMP_NUM_THREADS=2 python -m experiments.transplant_cifar10 --data-dir DATA --out OUT

OUT gets ``results.json``, ``results.txt`` and ``finetune.png``, rewritten after each run, the source model, and the
images as tensors; ``--resume`` continues from there. There is one source model, trained with one seed; ``--seeds`` are
for fine-tuning batches and re-initialised stems.

The exit code is 1 if the transplant changes more than one prediction or a control is not near chance.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convstem import transplant
from experiments import transplant_cifar10_report as report
from experiments.cifar10.data import Split, load_split
from experiments.machine import environment
from experiments.runs import carry_out
from experiments.transplant_cifar10_experiments import (
    BATCH,
    CLIP,
    OPTIMISERS,
    STARTS,
    STEM,
    TRUNK,
    Job,
    compare,
    control,
    create_source,
    drift,
    fine_tune,
    train,
)

SOURCE_RATE = 2e-3
"""Peak AdamW rate of the source model."""

CHANCE = 0.2
"""Accuracy below which a control counts as near chance (0.1)."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="image folder written by tools/cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="destination directory")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of fine-tuning")
    parser.add_argument("--steps", type=int, default=150, help="steps of fine-tuning")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the source model")
    parser.add_argument("--jobs", type=int, default=2, help="fine-tuning runs at a time, which share the threads")
    parser.add_argument("--resume", action="store_true", help="continue an earlier call in OUT")
    parser.add_argument("--subset", type=int, default=0, help="images of each split, for a smoke test; 0: all")
    return parser.parse_args(argv)


def settings(args: argparse.Namespace, data: Split, test: Split) -> dict[str, Any]:
    """Return everything that the results depend on, as plain JSON data."""
    return {
        "trunk": TRUNK, "stem": STEM.model_args, "epochs": args.epochs, "steps": args.steps, "seeds": args.seeds,
        "batch": BATCH, "source_rate": SOURCE_RATE, "optimisers": {name: list(OPTIMISERS[name]) for name in OPTIMISERS},
        "clip": CLIP, "train_images": len(data.labels), "test_images": len(test.labels),
    }  # fmt: skip


def get_source(path: Path, epochs: int, data: Split) -> nn.Module:
    """Return the trained patchify model, from its file if it exists."""
    source = create_source()
    if path.exists():
        source.load_state_dict(torch.load(path, weights_only=True))
        return source.eval()
    steps = epochs * math.ceil(len(data.labels) / BATCH)
    train(source, data, 0, steps, ("adamw", SOURCE_RATE, OPTIMISERS["AdamW"][2]), show=True)
    torch.save(source.state_dict(), path)
    return source


def measure(source: nn.Module, twin: nn.Module, data: Split, test: Split, seeds: Sequence[int]) -> dict[str, Any]:
    """Return all results except those of fine-tuning."""
    return {
        "report": twin.transplant_report.summary(),
        "function": compare(source, twin, test),
        "control": control(source, data, test, seeds),
        "drift": drift(source, twin, data, test),
    }


def holds(results: dict[str, Any]) -> bool:
    """Return whether the transplant changes at most one prediction, and every control is near chance."""
    changed = results["function"]["transplant, float32"]["changed"]
    return changed <= 1 and max(value for values in results["control"].values() for value in values) < CHANCE


def fine_tune_all(
    results: dict[str, Any], args: argparse.Namespace, models: tuple[nn.Module, nn.Module], data: Split, test: Split
) -> None:
    """Do the fine-tuning runs missing in ``results``, several at a time, and save after each."""
    begin, spent = time.perf_counter(), results["seconds"]
    done = {(run.optimiser, run.start, run.seed) for run in results["runs"]}
    jobs = [Job(name, start, seed) for seed in args.seeds for name in OPTIMISERS for start in STARTS]
    jobs = [job for job in jobs if (job.optimiser, job.start, job.seed) not in done]
    calls = {job: (job, models, data, test, args.steps) for job in jobs}
    for _, run in carry_out(fine_tune, calls, args.jobs, len(done) + len(jobs)):
        results["runs"].append(run)
        results["seconds"] = spent + time.perf_counter() - begin
        report.save(results, args.out)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args, begin = parse_args(argv), time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    source_file, results_file = args.out / "source.pt", args.out / "results.json"
    if not args.resume:
        source_file.unlink(missing_ok=True)
        results_file.unlink(missing_ok=True)
    data, test = (
        load_split(args.data_dir / name, args.out / f"{name}.pt", args.subset) for name in ("train", "validation")
    )
    source = get_source(source_file, args.epochs, data)
    twin = transplant(source, STEM)
    setting = settings(args, data, test)
    if results_file.exists():
        results = report.load_results(results_file)
        if results["setting"] != setting:
            print(f"error: {results_file} has other settings; choose another --out", file=sys.stderr)
            return 2
    else:
        results = {"environment": environment(args.jobs), "setting": setting, "seconds": 0.0}
        results |= {**measure(source, twin, data, test, args.seeds), "runs": []}
        results["seconds"] = time.perf_counter() - begin
        report.save(results, args.out)
    fine_tune_all(results, args, (source, twin), data, test)
    print(report.to_text(results))
    return int(not holds(results))


if __name__ == "__main__":
    sys.exit(main())
