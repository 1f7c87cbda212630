"""Does a conv stem train faster, and depend less on optimizer and learning rate? CIFAR-10, from scratch.

Trains every combination of stem, optimizer, learning rate and seed. The patchify twins are timm's own model with the
same trunk, at equal depth and one block deeper. The deeper one costs about as much as the conv stem, as in the paper.

    python -m tools.cifar10 DATA
    python -m experiments.cifar10_evidence --data-dir DATA --out OUT --epochs 10 --seeds 0 1 2 --jobs 2
    python -m experiments.cifar10_evidence --data-dir DATA --out OUT --report    # only print the table, draw the plots

It can be interrupted or killed: the same command continues from the last complete epoch of each run. OUT/runs.jsonl
gets a line for each finished run, OUT/runs/NAME its last checkpoint, OUT ``results.txt`` and ``curves.png``; ``--plan``
prints the runs. They go seed by seed, with the stems side by side, so that an interrupted table is still fair.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.cifar10 import sweep
from experiments.cifar10.models import COLOURS, STEMS, pflop, twin_settings
from experiments.cifar10.settings import Settings, precision_of
from experiments.machine import machines
from experiments.runs import RUNS, Row, by_name
from experiments.seeds import Scores, paired, spread, verdict

OPTIMIZERS = {"adamw": (0.05, (2e-4, 6e-4, 2e-3, 6e-3, 2e-2)), "sgd": (1e-4, (0.02, 0.06, 0.2, 0.6, 2.0))}
"""Weight decay and learning rates of each optimizer; the rates are factors of about three around the usual one."""


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
        """Return the settings: only crops, flips and label smoothing, so that short runs are meaningful."""
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


# The paper's claims

CHANCE = 10.0
"""Accuracy, in per cent, of a diverged run."""

Key = tuple[str, str, str, float]
"""Model, optimizer, stem and learning rate."""


@dataclass(frozen=True)
class Curve:
    """One finished run: test accuracy in per cent after each epoch, and its line in ``runs.jsonl``."""

    accuracy: tuple[float, ...]
    row: Row

    @property
    def lost(self) -> bool:
        """Whether the run diverged."""
        return sweep.DIVERGED in self.row


Runs = dict[Key, dict[int, Curve]]
"""Runs by ``Key``, then by seed."""


def read_runs(out: Path) -> Runs:
    """Return the finished runs; a diverged run ends at chance."""
    groups: Runs = defaultdict(dict)
    for name, row in sorted(by_name(out).items()):
        model, stem, optimizer, rest = name.split("-", 3)
        rate, seed = rest.rsplit("-", 1)
        accuracy = [epoch["accuracy"] for epoch in row["epochs"]] + [CHANCE] * (sweep.DIVERGED in row)
        groups[model, optimizer, stem, float(rate)][int(seed)] = Curve(tuple(accuracy), row)
    return dict(sorted(groups.items()))


def final(curves: Mapping[int, Curve]) -> float:
    """Return the mean accuracy after the last epoch, over seeds."""
    return statistics.fmean(curve.accuracy[-1] for curve in curves.values())


def rates_of(runs: Runs, model: str, optimizer: str, stem: str) -> dict[float, dict[int, Curve]]:
    """Return the runs of one model, optimizer and stem by learning rate."""
    return {key[3]: curves for key, curves in runs.items() if key[:3] == (model, optimizer, stem)}


def best(rates: Mapping[float, Mapping[int, Curve]]) -> Mapping[int, Curve]:
    """Return the runs of the learning rate with the highest final accuracy."""
    return max(rates.values(), key=final)


def best_of_seeds(rates: Mapping[float, Mapping[int, Curve]]) -> Scores:
    """Return, by seed, the final accuracy at the rate that is best on average."""
    return {seed: curve.accuracy[-1] for seed, curve in best(rates).items()}


NEAR = 10.0
"""A rate counts as near if it is less than this many points below the best rate."""

OVER_RATES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean accuracy": statistics.fmean,
    "smaller range": lambda finals: min(finals) - max(finals),
    f"rates less than {NEAR:g} points below the best": lambda finals: sum(max(finals) - x < NEAR for x in finals),
}
"""Measures of how little the final accuracy depends on the rate; more is better."""


def over_rates(rates: Mapping[float, Mapping[int, Curve]], measure: Callable[[Sequence[float]], float]) -> Scores:
    """Return, by seed, a measure of the final accuracies over rates, for seeds that all rates have."""
    seeds = set.intersection(*(set(curves) for curves in rates.values()))
    return {seed: measure([curves[seed].accuracy[-1] for curves in rates.values()]) for seed in sorted(seeds)}


def epochs_to(curve: Sequence[float], accuracy: float) -> int:
    """Return the epochs until a curve reaches an accuracy; if it never does, one more than it has."""
    return next((epoch for epoch, value in enumerate(curve, 1) if value >= accuracy), len(curve) + 1)


def shared_rates(*sweeps: Mapping[float, Any]) -> list[dict[float, Any]]:
    """Return sweeps with only the rates that all have, so that an unfinished table compares like with like."""
    return [{rate: rates[rate] for rate in rates if all(rate in other for other in sweeps)} for rates in sweeps]


def claims(runs: Runs, model: str, other: str) -> list[str]:
    """Return the paper's claims about a model against one of its twins, with figures."""
    lines, gaps = [], {}
    for optimizer in sorted({key[1] for key in runs}):
        conv, twin = shared_rates(*(rates_of(runs, model, optimizer, stem) for stem in ("conv", other)))
        if not conv:
            continue
        lines.append(verdict(f"{optimizer}: accuracy at the best rate", paired(*map(best_of_seeds, (conv, twin)))))
        for name, measure in OVER_RATES.items() if len(conv) > 1 else ():
            if better := paired(*(over_rates(rates, measure) for rates in (conv, twin))):
                lines.append(verdict(f"{optimizer}: {name}, over {len(conv)} rates", better))
        ours, theirs = best(conv), best(twin)
        epochs = len(next(iter(theirs.values())).accuracy)
        early = {s: epochs - epochs_to(ours[s].accuracy, theirs[s].accuracy[-1]) for s in sorted({*ours} & {*theirs})}
        lines.append(verdict(f"{optimizer}: epochs sooner at the twin's final accuracy, of {epochs}", early))
        gaps[optimizer] = best_of_seeds(conv), best_of_seeds(twin)
    if {"adamw", "sgd"} <= set(gaps):
        conv_gap, twin_gap = (paired(gaps["adamw"][i], gaps["sgd"][i]) for i in range(2))
        lines.append(verdict("smaller gap from AdamW to SGD", paired(twin_gap, conv_gap)))
    return [f"{model}, conv stem against {other}", *lines, ""] if lines else []


# Table and plots

PICTURE = "curves.png"


def cell(curves: Mapping[int, Curve]) -> str:
    """Return mean, spread over seeds, and the number of diverged runs."""
    lost = sum(curve.lost for curve in curves.values())
    return spread(curve.accuracy[-1] for curve in curves.values()) + (f" ({lost} lost)" if lost else "")


def table(runs: Runs, model: str, optimizer: str) -> list[str]:
    """Return the table of one model and optimizer."""
    sweeps = {stem: rates for stem in STEMS if (rates := rates_of(runs, model, optimizer, stem))}
    columns = sorted({rate for rates in sweeps.values() for rate in rates})
    lines = [f"{model}, {optimizer}", f"{'stem':<12}" + "".join(f"{f'lr {rate:g}':>18}" for rate in columns)]
    for stem, rates in sweeps.items():
        lines.append(f"{stem:<12}" + "".join(f"{cell(rates[rate]) if rate in rates else '-':>18}" for rate in columns))
    return [*lines, ""]


def sizes(runs: Runs) -> list[str]:
    """Return the size and cost of each model."""
    rows = {key[0::2]: curve.row for key, curves in runs.items() for curve in curves.values()}
    return [f"{model}, {stem}: {row['parameters']:,} parameters, {row['gmacs']:.4f} GMACs"
            for (model, stem), row in sorted(rows.items())]  # fmt: skip


def circumstances(runs: Runs) -> list[str]:
    """Return the settings that all runs share, their hours, and the machines."""
    rows = [curve.row for curves in runs.values() for curve in curves.values()]
    shared = rows[0]["settings"]
    hours, work = sum(row["cpu_hours"] for row in rows), sum(map(pflop, rows))
    images, precision = shared["train_images"] or "all", precision_of(shared)
    return [
        f"{shared['epochs']} epochs of {images} training images, all test images; batch {shared['batch_size']}, "
        f"label smoothing {shared['smoothing']:g}, clipped at {shared['clip_grad']:g}; {precision}",
        f"{hours:.1f} hours of processor time and {work:.1f} PFLOP in {len(rows)} runs",
        *machines(rows),
    ]


def to_text(runs: Runs) -> str:
    """Return the report."""
    models, optimizers = (sorted({key[index] for key in runs}) for index in range(2))
    seeds = sorted({seed for curves in runs.values() for seed in curves})
    lines = [f"CIFAR-10 test accuracy (%) from scratch; mean +- sample deviation over seeds {seeds}", ""]
    lines += [line for model in models for name in optimizers for line in table(runs, model, name)]
    lines += [
        "In favour of the conv stem (points, or epochs), paired by seed; shown where all seeds agree",
        "",
    ]
    lines += [line for model in models for other in STEMS[1:] for line in claims(runs, model, other)]
    return "\n".join([*lines, *sizes(runs), *circumstances(runs)]) + "\n"


def plot(runs: Runs, path: Path) -> None:
    """Draw, per model and optimizer, accuracy over epochs at the best rate, and final accuracy over rates."""
    import matplotlib.pyplot as plt

    kinds = sorted({key[:2] for key in runs})
    figure, axes = plt.subplots(len(kinds), 2, figsize=(10, 3.2 * len(kinds)), layout="constrained", squeeze=False)
    for (left, right), (model, optimizer) in zip(axes, kinds, strict=True):
        for stem, colour in COLOURS.items():
            rates = rates_of(runs, model, optimizer, stem)
            for seed, curve in best(rates).items() if rates else ():
                label = stem if seed == min(best(rates)) else None
                left.plot(range(1, len(curve.accuracy) + 1), curve.accuracy, color=colour, alpha=0.7, label=label)
            right.plot(list(rates), [final(curves) for curves in rates.values()], color=colour, marker="o", label=stem)
        left.set(title=f"{model}, {optimizer}: at the best rate", xlabel="epoch", ylabel="test accuracy, %")
        left.xaxis.get_major_locator().set_params(integer=True)
        right.set(title="final accuracy over learning rate", xlabel="learning rate", xscale="log")
        for place in (left, right):
            place.grid(alpha=0.25)
            place.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(out: Path) -> None:
    """Print the table; write it and the plots beside the runs."""
    runs = read_runs(out)
    if not runs:
        raise SystemExit(f"{out / RUNS} has no finished run yet")
    text = to_text(runs)
    (out / "results.txt").write_text(text, encoding="utf-8")
    plot(runs, out / PICTURE)
    print(text, end="")


# Command line


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
    """Do the missing runs, then report."""
    args = parse_args(argv)
    runs = {run.name: run.settings(args) for run in planned(args)}
    if args.plan:
        print("\n".join([*runs, f"{len(runs)} runs of {args.epochs} epochs"]))
        return
    if not args.report:
        sweep.run_all(runs, sweep.Where.from_flags(args))
    write(args.out)


if __name__ == "__main__":
    main()
