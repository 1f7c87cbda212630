"""Does a conv stem train faster, and with less care about optimizer and learning rate? CIFAR-10, from scratch.

Trains every combination of stem, optimizer, learning rate and seed. The patchify twins are timm's own model with the
same trunk, one of equal depth and one a block deeper, whose cost is about the conv stem's: so the paper compares them.

    python -m tools.cifar10 DATA
    python -m experiments.cifar10_evidence --data-dir DATA --out OUT --epochs 10 --seeds 0 1 2 --jobs 2
    python -m experiments.cifar10_evidence --data-dir DATA --out OUT --report    # only print the table, draw the plots

Interrupt or kill it freely: the same command goes on from the last whole epoch of each run. OUT/runs/NAME holds log and
last checkpoint of a run, OUT gets ``results.txt`` and ``curves.png``; ``--plan`` prints the runs. They go seed by seed
with the stems side by side, so that an interrupted table is still a fair one.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

from experiments import cifar10_evidence_report as report
from experiments.cifar10 import sweep
from experiments.cifar10.models import STEMS, twin_settings
from experiments.cifar10.settings import Settings

OPTIMIZERS = {"adamw": (0.05, (2e-4, 6e-4, 2e-3, 6e-3, 2e-2)), "sgd": (1e-4, (0.02, 0.06, 0.2, 0.6, 2.0))}
"""Weight decay and learning rates of each optimizer: factors of about three around the usual one."""


@dataclass(frozen=True)
class Run:
    """One training."""

    model: str
    stem: str
    optimizer: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Folder of the run: ``MODEL-STEM-OPTIMIZER-RATE-SEED``."""
        return f"{self.model}-{self.stem}-{self.optimizer}-{self.rate:g}-{self.seed}"

    def settings(self, args: argparse.Namespace) -> Settings:
        """Return the settings; crops, flips and label smoothing only, so that short runs say something."""
        return Settings(
            **twin_settings(self.model, self.stem),
            opt=self.optimizer,
            lr=self.rate,
            weight_decay=OPTIMIZERS[self.optimizer][0],
            clip_grad=1.0,
            seed=self.seed,
            epochs=args.epochs,
            batch_size=args.batch_size,
            train_images=args.train_images,
            eval_interval=1,
            **args.bfloat16,
        )


def planned(args: argparse.Namespace) -> list[Run]:
    """Return all runs."""
    rates = [(name, rate) for name in args.optimizers for rate in args.rates.get(name, OPTIMIZERS[name][1])]
    combined = itertools.product(args.seeds, args.models, rates, args.stems)
    return [Run(model, stem, name, rate, seed) for seed, model, (name, rate), stem in combined]


def parse_rates(text: str) -> tuple[str, tuple[float, ...]]:
    """Parse ``adamw=1e-3,4e-3``."""
    name, _, values = text.partition("=")
    if name not in OPTIMIZERS or not values:
        raise argparse.ArgumentTypeError(f"expected OPTIMIZER=RATE,RATE,... with {' or '.join(OPTIMIZERS)}; got {text}")
    return name, tuple(float(value) for value in values.split(","))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sweep.add_flags(parser)
    sweep.add_bfloat16(parser)
    parser.add_argument("--models", nargs="+", default=["vit_nano4_convstem"])
    parser.add_argument("--stems", nargs="+", default=list(STEMS), choices=STEMS)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--rates", type=parse_rates, nargs="+", default=[], help="adamw=RATE,... sgd=RATE,...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-images", type=int, default=0, help="first images of each class, in all; 0: all")
    parser.add_argument("--plan", action="store_true", help="only print the runs")
    parser.add_argument("--report", action="store_true", help="only print the table and draw the plots")
    args = parser.parse_args(argv)
    args.rates = dict(args.rates)
    return args


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, then report."""
    args = parse_args(argv)
    runs = {run.name: run.settings(args) for run in planned(args)}
    if args.plan:
        print("\n".join([*runs, f"{len(runs)} runs of {args.epochs} epochs"]))
        return
    if not args.report:
        sweep.run_all(runs, sweep.Where.from_flags(args))
    report.write(args.out)


if __name__ == "__main__":
    main()
