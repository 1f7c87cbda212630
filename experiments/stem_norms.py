"""Which norm should a stem have after a transplant: BatchNorm, frozen BatchNorm, or none?

The small patchify ViT of ``transplant_cifar10.py`` is trained on CIFAR-10 and transplanted to a conv stem with each
norm. Then:

1. The patchify model and the three transplants are fine-tuned with AdamW and SGD, in batches of 128 and of 8 images,
   all on the same batches for one seed.
2. Models with BatchNorm and without a norm are trained from scratch, with AdamW in batches of 128.

    python -m tools.cifar10 DATA
    OMP_NUM_THREADS=1 python -m experiments.stem_norms --data-dir DATA --out OUT

OUT gets ``results.json`` and ``results.txt``, rewritten after each run; the same call again continues there.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import nn

from convstem import transplant
from convstem.transplanting.surgery import put_stem
from experiments.cifar10.data import Split, load_split
from experiments.machine import environment, in_words
from experiments.seeds import spread
from experiments.transplant_cifar10 import get_source
from experiments.transplant_cifar10_experiments import (
    STEM,
    accuracy,
    create_source,
    predict,
    train,
)

EPOCHS = 1
"""Of the source model."""

NORMS = ("batchnorm2d", "frozen_bn", "none")
STARTS = ("patchify", *NORMS)
BATCHES = (128, 8)
STEPS = {128: 60, 8: 240}
"""By batch size."""

RATES = {("AdamW", 128): 1e-3, ("AdamW", 8): 2.5e-4, ("SGD", 128): 0.02, ("SGD", 8): 0.00125}
"""Peak rates, not tuned: AdamW's scale with the square root of the batch, SGD's in proportion."""

OPTIMISERS = {"AdamW": ("adamw", 0.05), "SGD": ("momentum", 0.0)}
"""timm name and weight decay."""

SCRATCH_STEPS = 150
TEST_IMAGES = 5000
WINDOW = 20
"""Number of last steps over which the training loss is averaged, for batches of 128; more for smaller batches."""


@dataclass(frozen=True)
class Run:
    """One training run, and the fraction of test images that it classifies correctly at the end."""

    part: str
    """``fine-tuning`` or ``scratch``."""
    optimiser: str
    batch: int
    start: str
    seed: int
    accuracy: float = 0.0
    last: float = 0.0
    """Mean training loss of the last steps."""


def plan(seeds: list[int]) -> Iterator[Run]:
    """Yield all runs."""
    for seed, name, batch, start in product(seeds, OPTIMISERS, BATCHES, STARTS):
        yield Run("fine-tuning", name, batch, start, seed)
    for seed, norm in product(seeds, ("batchnorm2d", "none")):
        yield Run("scratch", "AdamW", 128, norm, seed)


def start_model(run: Run, source: nn.Module, data: Split) -> nn.Module:
    """Return the model that a run starts from."""
    if run.start == "patchify":
        return copy.deepcopy(source)
    stem = replace(STEM, norm=run.start)
    if run.part == "fine-tuning":
        return transplant(source, stem)
    torch.manual_seed(run.seed)
    model = create_source()
    model.init_weights()
    put_stem(model, stem)
    return model


def carry_out(run: Run, source: nn.Module, data: Split, test: Split) -> Run:
    """Train one model and return its run with the results."""
    model = start_model(run, source, data)
    name, decay = OPTIMISERS[run.optimiser]
    steps = SCRATCH_STEPS if run.part == "scratch" else STEPS[run.batch]
    rate = RATES[run.optimiser, run.batch]
    losses = train(model, data, 1000 + run.seed, steps, (name, rate, decay), batch=run.batch)
    last = statistics.fmean(losses[-WINDOW * 128 // run.batch :])
    return replace(run, accuracy=accuracy(predict(model, test.images), test.labels), last=last)


def to_text(runs: list[Run], source: float, machine: str) -> str:
    """Return the report: one line per start, with mean and standard deviation over seeds."""
    lines = [
        f"The norm of a transplanted stem: CIFAR-10, {TEST_IMAGES} test images",
        machine,
        f"patchify source of {EPOCHS} epochs: {100 * source:.2f} %; stem {list(STEM.channels)}; rates {RATES_TEXT}; "
        f"{STEPS[128]} steps of 128 images, {STEPS[8]} of 8, {SCRATCH_STEPS} from scratch",
        "",
        f"{'':<12} {'optimiser':<10}{'batch':>6}  {'start':<12}{'runs':>5}{'accuracy %':>16}"
        f"{'minus BatchNorm':>18}{'last loss':>18}",
    ]
    for key in dict.fromkeys((run.part, run.optimiser, run.batch, run.start) for run in runs):
        found = [run for run in runs if (run.part, run.optimiser, run.batch, run.start) == key]
        base = {run.seed: run.accuracy for run in runs
                if (run.part, run.optimiser, run.batch, run.start) == (*key[:3], "batchnorm2d")}  # fmt: skip
        gains = [100 * (run.accuracy - base[run.seed]) for run in found if run.seed in base]
        lines.append(
            f"{key[0]:<12} {key[1]:<10}{key[2]:>6}  {key[3]:<12}{len(found):>5}"
            f"{spread([100 * run.accuracy for run in found]):>16}{spread(gains):>18}"
            f"{spread([run.last for run in found], 3):>18}"
        )
    return "\n".join(lines) + "\n"


RATES_TEXT = ", ".join(f"{name} {rate:g} at {batch}" for (name, batch), rate in RATES.items())


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="image folder written by tools/cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="destination directory")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of training")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    data, test = (load_split(args.data_dir / name, args.out / f"{name}.pt", 0) for name in ("train", "validation"))
    source = get_source(args.out / "source.pt", EPOCHS, data)
    machine = in_words(environment(1))
    test = Split(test.images[:: len(test.labels) // TEST_IMAGES], test.labels[:: len(test.labels) // TEST_IMAGES])
    score = accuracy(predict(source, test.images), test.labels)
    file = args.out / "results.json"
    runs = [Run(**row) for row in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
    done = {replace(run, accuracy=0.0, last=0.0) for run in runs}
    for run in plan(args.seeds):
        if run in done:
            continue
        runs.append(carry_out(run, source, data, test))
        file.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in runs) + "\n]\n", encoding="utf-8")
        (args.out / "results.txt").write_text(to_text(runs, score, machine), encoding="utf-8")
    print(to_text(runs, score, machine))


if __name__ == "__main__":
    main()
