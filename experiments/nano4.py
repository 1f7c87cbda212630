"""The embedded model: vit_nano4_convstem on CIFAR-10, with and without a teacher, on two CPU cores.

    python -m tools.cifar10 DATA
    python -m experiments.nano4 --data-dir DATA --out OUT --threads 2                 # teacher, then student
    python -m experiments.nano4 --data-dir DATA --out OUT --threads 2 --stages plain  # the recipe without teacher
    python -m experiments.nano4 --data-dir DATA --out OUT --jobs 2 --stages levers    # short runs, one change each
    python -m experiments.nano4 --data-dir DATA --out OUT --stages report             # results so far, and the hours

Each stage has a folder in OUT with its last checkpoint; OUT/runs.jsonl gets a line for each finished stage or short
run. It can be interrupted or killed: the same command continues from the last complete epoch, to the same result. The
test images are used once, after the last epoch; the levers are compared on held-out training images. The hours are the
sum over complete epochs; processor hours divided by the number of cores are the time on quiet cores.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean

import torch

from experiments.cifar10 import sweep
from experiments.cifar10.models import POOLED, pflop
from experiments.cifar10.settings import BFLOAT16, Settings
from experiments.cifar10.training import CHECKPOINT, DivergedError, run, so_far
from experiments.machine import machines
from experiments.runs import Row, by_name
from experiments.seeds import paired, spread

TEACHER = Settings(model="convnet", epochs=12, batch_size=256, sched="poly", amp=True)
PLAIN = Settings(
    epochs=92, warmup_epochs=3, small_epochs=36, cutmix=1.0, mixup_prob=0.5, mixup_off_epoch=80,
    model_ema_decay=0.999, **BFLOAT16,
)  # fmt: skip
STUDENT = replace(PLAIN, teacher_share=0.8, views=12, temperature=1.0)

STAGES = {"teacher": TEACHER, "student": STUDENT, "plain": PLAIN}

SHORT = Settings(epochs=3, train_images=10_000, holdout=5_000, **BFLOAT16)
"""The base of the levers, which change one setting each."""

LEVERS = {
    "as it is": {},
    "float32": {"amp": False, "fused_attn": True},
    "average pooling": {"model_kwargs": POOLED},
    "AdamW 2e-3": {"opt": "adamw", "lr": 2e-3},
    "Muon 1e-2": {"lr": 1e-2},
    "Muon 2.5e-3": {"lr": 2.5e-3},
    "momentum 0.95": {"momentum": 0.95},
    "batch 64": {"batch_size": 64},
    "batch 256": {"batch_size": 256},
    "linear schedule": {"sched": "poly"},
    "flips at random": {"flip": "random"},
    "no crops": {"crop": 0},
    "no label smoothing": {"smoothing": 0.0},
    "CutMix, half of the batches": {"cutmix": 1.0, "mixup_prob": 0.5},
    "24 pixels in the first epoch": {"small_epochs": 1},
    "GELU in the stem": {"model_kwargs": {"stem_act": "gelu"}},
    "width 112, depth 5": {"model_kwargs": {"embed_dim": 112, "depth": 5, "num_heads": 4}},
}
SEEDS = (0, 1)


def lever_runs() -> dict[str, Settings]:
    """Return the short runs by name."""
    return {
        f"{name.replace(' ', '_')}-{seed}": replace(SHORT, **changes, seed=seed)
        for seed, (name, changes) in product(SEEDS, LEVERS.items())
    }


def score(row: Row) -> float:
    """Return the accuracy after the last epoch."""
    return row["epochs"][-1]["accuracy"]


def lever_lines(out: Path) -> list[str]:
    """Return the table of the levers: accuracy on held-out images, gain paired by seed, and time."""
    done, planned = by_name(out), lever_runs()
    found: dict[str, dict[int, Row]] = {}
    for name, seed in product(LEVERS, SEEDS):
        run_name = f"{name.replace(' ', '_')}-{seed}"
        if sweep.is_done(done, run_name, planned[run_name]) and sweep.DIVERGED not in done[run_name]:
            found.setdefault(name, {})[seed] = done[run_name]
    if not found:
        return []
    base = found.get("as it is", {})
    lines = [f"{SHORT.epochs} epochs of {SHORT.train_images} images, {SHORT.holdout} held-out training images; seeds "
             f"{SEEDS}", f"{'lever':<32}{'accuracy %':>16}{'gain':>16}{'processor s':>13}"]  # fmt: skip
    for name, of_seeds in found.items():
        scores, others = ({seed: score(row) for seed, row in rows.items()} for rows in (of_seeds, base))
        gains = paired(scores, others).values()
        seconds = fmean(3600 * row["cpu_hours"] for row in of_seeds.values())
        cells = spread(scores.values()), spread(gains)
        lines.append(f"{name:<32}{cells[0]:>16}{cells[1]:>16}{seconds:>13.0f}")
    return [*lines, *machines(row for rows in found.values() for row in rows.values())]


def stage_lines(out: Path) -> list[str]:
    """Return the table of the long runs: epochs, accuracy after the last one, size, work, hours."""
    columns = {"epochs": 10, "accuracy %": 12, "parameters": 12, "GMACs": 8, "PFLOP": 8, "hours": 8, "of processor": 14}
    lines = [f"{'stage':<10}" + "".join(f"{name:>{width}}" for name, width in columns.items())]
    found = begun_stages(out)
    for name, row in found.items():
        done, planned = len(row["epochs"]), STAGES[name].epochs
        accuracy = f"{score(row):.2f}" if done == planned else "-"
        lines.append(
            f"{name:<10}{f'{done}/{planned}':>10}{accuracy:>12}{row['parameters']:>12,}{row['gmacs']:>8.4f}"
            f"{pflop(row):>8.2f}{row['hours']:>8.2f}{row['cpu_hours']:>14.2f}"
        )
    return [*lines, "PFLOP: forward and backward passes of all epochs; a teacher's for its student are not counted",
            *machines(found.values())] if found else []  # fmt: skip


def begun_stages(out: Path) -> dict[str, Row]:
    """Return the records of the long runs: of finished runs from the file, of others from their checkpoint."""
    done = by_name(out)
    begun = [name for name in STAGES if name in done or (out / name / CHECKPOINT).exists()]
    return {name: done.get(name) or so_far(out / name) for name in begun}


def report(out: Path) -> str:
    """Return the tables of the results so far."""
    sections = filter(None, (lever_lines(out), stage_lines(out)))
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def carry_out(stage: str, args: argparse.Namespace) -> None:
    """Do one stage, from its last checkpoint."""
    if stage == "report":
        print(report(args.out), end="")
    elif stage == "levers":
        sweep.run_all(lever_runs(), sweep.Where.from_flags(args))
    else:
        teacher = args.out / "teacher" if stage == "student" else None
        work = partial(run, STAGES[stage], args.data_dir, args.out / stage, args.device, teacher)
        sweep.kept(args.out, stage, STAGES[stage], work)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sweep.add_flags(parser)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's choice")
    stages = [*STAGES, "levers", "report"]
    parser.add_argument("--stages", nargs="+", default=["teacher", "student", "report"], choices=stages)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        for stage in args.stages:
            carry_out(stage, args)
    except (DivergedError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
