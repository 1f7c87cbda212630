"""Does fine-tuning make use of more pixels for the same tokens, if it starts from the source's function?

A small ViT is trained on CIFAR-10 at 16 x 16 pixels, patch 2. Every arm is fine-tuned from it, once for as many steps
as the arm "source" and once for as much time:

    source     the source at 16 px, 64 tokens: the baseline
    stride 4   its transplant with stride 4 at 32 px, 64 tokens: at first the source on averages of 2 x 2 pixels
    averages   the same with a leaner stem: its first layer carries the averages, and its other channels are free
    kernel 4   the plain ViT at 32 px with its kernel spread over 4 x 4 pixels, 64 tokens: the same function at first
    patch 2    the plain ViT at 32 px, 256 tokens, positions resampled: the ceiling, at four times the tokens

    python -m tools.cifar10 DATA
    python -m experiments.more_pixels --data-dir DATA --out OUT --threads 1

A killed run continues from its last checkpoint in OUT/runs/NAME; OUT/runs.jsonl gets a line for each finished run. OUT
gets ``results.txt`` and ``more_pixels.png`` of the finished runs; ``--report`` writes only these.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import convstem
from convstem.files.paths import write_whole
from convstem.registry.stem_spec import StemSpec
from convstem.stem import carry
from experiments.cifar10 import data, models, sweep
from experiments.cifar10.data import MEAN, STD, Split
from experiments.cifar10.settings import Settings, precision_of
from experiments.cifar10.training import Training, accuracy, load_trained, train
from experiments.machine import machines
from experiments.runs import RUNS, Row, append_line, by_name, read_lines
from experiments.seeds import Scores, paired, with_interval
from tools.cifar10 import SIZE

ARMS = ("source", "stride 4", "averages", "kernel 4", "patch 2")
BUDGETS = ("steps", "time")
SMALL, PATCH = SIZE // 2, 2
TRUNK = {"img_size": SMALL, "patch_size": PATCH, "embed_dim": 96, "depth": 5, "num_heads": 3, "mlp_ratio": 2}
SOURCE = Settings(
    model="vit_tiny_patch16_224", model_kwargs={**TRUNK, **models.CFG}, epochs=6, size=SMALL, crop=2, eval_interval=1
)
TUNING = Settings(
    model=SOURCE.model, model_kwargs=SOURCE.model_kwargs, epochs=1, epoch_steps=195, opt="adamw", lr=3e-4,
    clip_grad=1.0, warmup_epochs=0.1,
)  # fmt: skip
Precision = Mapping[str, Any]
CONDITIONS, PICTURE, RESULTS = "conditions.json", "more_pixels.png", "results.txt"
SAME = 1.05
"""An arm's steps count as equal in time if they take at most this factor longer than the source's."""

ROUNDS = 3
"""Rounds in which each arm's steps are timed in turn, so that other load on the machine affects all arms."""


def halved(split: Split) -> Split:
    """Return images of half the height and width: averages of 2 x 2 pixels, rounded to bytes."""
    small = F.avg_pool2d(split.images.float(), 2).round().byte()
    return Split(small.contiguous(memory_format=torch.channels_last), split.labels)


def start_model(arm: str, source: nn.Module) -> nn.Module:
    """Return a fresh copy of the model that an arm starts from."""
    model: Any = copy.deepcopy(source)
    if arm == "stride 4":
        model = convstem.transplant(model, stride=4)
    if arm == "averages":
        model = convstem.transplant(model, StemSpec((24, 24), norm="none"), stride=4)
    if arm == "kernel 4":
        weight = carry.spread(model.patch_embed.proj.weight.detach(), 4)
        model.set_input_size(img_size=SIZE, patch_size=4)
        model.patch_embed.proj.weight = nn.Parameter(weight)
    if arm == "patch 2":
        model.set_input_size(img_size=SIZE)
    return model.train()


def settings_of(arm: str, seed: int, steps: int, precision: Precision, epochs: int = 1) -> Settings:
    """Return an arm's settings; all arms shift their images by the same fraction of the side."""
    size, crop = (SMALL, 2) if arm == "source" else (0, 4)
    steps_each = max(steps // epochs, 1)
    return replace(TUNING, size=size, crop=crop, seed=seed, epochs=epochs, epoch_steps=steps_each, **precision)


def images_of(arm: str, split: Split) -> Split:
    """Return the images of an arm."""
    return halved(split) if arm == "source" else split


def step_time(arm: str, source: nn.Module, images: Split, precision: Precision) -> float:
    """Return the median time of a training step, in seconds."""
    training = Training(settings_of(arm, 0, 16, precision), images_of(arm, images), model=start_model(arm, source))
    times = []
    for update, (batch, rows) in enumerate(data.batches(training.images, 0, training.settings)):
        begin = time.process_time()
        training.step(batch, training.targets(rows, None), update)
        times.append(time.process_time() - begin)
    return statistics.median(times)


def conditions(source: nn.Module, images: Split, test: Split, out: Path, precision: Precision) -> dict[str, Any]:
    """Measure each arm once: its time per step relative to the source's, its cost, and its untrained accuracy."""
    path = out / CONDITIONS
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    rounds = [{arm: step_time(arm, source, images, precision) for arm in ARMS} for _ in range(ROUNDS)]
    ratios = {arm: statistics.median(times[arm] / times["source"] for times in rounds) for arm in ARMS}
    found: dict[str, Any] = {"ratios": ratios, "arms": {}}
    for arm in ARMS:
        model: Any = start_model(arm, source).eval()
        untrained = accuracy(model, images_of(arm, test), SMALL if arm == "source" else 0)
        cost = models.count(model, SMALL if arm == "source" else SIZE)
        found["arms"][arm] = {"untrained": untrained, "tokens": model.patch_embed.num_patches, **cost}
    write_whole(path, lambda file: file.write_text(json.dumps(found, indent=1), encoding="utf-8"))
    return found


def train_source(images: Split, test: Split, out: Path, precision: Precision) -> nn.Module:
    """Return the source, trained to its last epoch."""
    training = Training(replace(SOURCE, **precision), halved(images))
    train(training, halved(test), out / "source", show=True)
    model: Any = load_trained(out / "source", "cpu")
    model.pretrained_cfg.update(mean=MEAN, std=STD)  # a transplant needs them
    return model


def run(name: str, settings: Settings, arm: str, source: nn.Module, images: Split, test: Split, out: Path) -> Row:
    """Fine-tune one arm from its last checkpoint and return its line for ``runs.jsonl``."""
    training = Training(settings, images_of(arm, images), model=start_model(arm, source))
    train(training, images_of(arm, test), out / "runs" / name, show=True)
    return {"run": name, "arm": arm, "accuracy": training.history[-1]["accuracy"], **training.record()}


def plan(seeds: Iterable[int], ratios: Mapping[str, float]) -> list[tuple[str, str, int]]:
    """Return budget, arm and seed of all runs, the cheap ones first, so that a lost machine leaves complete seeds.

    An arm with steps as fast as the source's has one run for both budgets.
    """
    runs = [(BUDGETS[0], arm, seed) for seed, arm in product(seeds, ARMS)]
    runs += [(BUDGETS[1], arm, seed) for seed, arm in product(seeds, ARMS) if ratios[arm] > SAME]
    return sorted(runs, key=lambda run: run[0] == BUDGETS[0] and ratios[run[1]] > SAME)


def run_all(args: argparse.Namespace) -> None:
    """Do the missing runs, seed by seed and arm by arm; save each when it ends."""
    images, test = data.read(args.data_dir, SOURCE, "cpu")
    source = train_source(images, test, args.out, args.bfloat16)
    ratios = conditions(source, images, test, args.out, args.bfloat16)["ratios"]
    done = by_name(args.out)
    for budget, arm, seed in plan(args.seeds, ratios):
        name = f"{arm}-{budget}-{seed}".replace(" ", "_")
        whole = args.epochs * TUNING.epoch_steps
        steps = whole if budget == "steps" else round(whole / ratios[arm])
        settings = settings_of(arm, seed, steps, args.bfloat16, args.epochs)
        if not sweep.is_done(done, name, settings):
            row = run(name, settings, arm, source, images, test, args.out)
            append_line(args.out / RUNS, {**row, "budget": budget, "seed": seed})
            report(args.out)


def figures(runs: list[Row], budget: str) -> dict[str, Scores]:
    """Return the accuracies of each arm under a budget, by seed."""
    timed = {row["arm"] for row in runs if row["budget"] == BUDGETS[1]}
    own = [row for row in runs if row["budget"] == budget or row["arm"] not in timed]
    return {arm: {row["seed"]: row["accuracy"] for row in own if row["arm"] == arm} for arm in ARMS}


def to_text(out: Path) -> str:
    """Return the report of a folder."""
    runs, known = read_lines(out / RUNS), json.loads((out / CONDITIONS).read_text(encoding="utf-8"))
    about, minutes = runs[0]["settings"], 60 * sum(row["cpu_hours"] for row in runs)
    whole = about["epochs"] * about["epoch_steps"]
    lines = [
        "CIFAR-10, all images, accuracy in per cent: mean +- spread of the seeds [95 % interval of the mean];",
        f"differences are paired by seed. The source is trained for {SOURCE.epochs} epochs at {SMALL} px, the arms for",
        f"{whole} steps of {about['batch_size']} images, or as long as the source's {whole} steps take;",
        f"{precision_of(about)}; {minutes:.0f} minutes of processor time in {len(runs)} runs, cut down to fit.",
        *machines(runs),
    ]
    for arm in ARMS:
        cost = known["arms"][arm]
        lines += [
            "",
            f"{arm}: {cost['tokens']} tokens, {cost['gmacs']:.4f} GMACs, a step takes {known['ratios'][arm]:.2f} times "
            f"the source's, untrained {cost['untrained']:.2f}",
        ]
        for budget in BUDGETS:
            found = figures(runs, budget)
            lines.append(f"    equal {budget}: {with_interval(found[arm].values()) or 'no runs'}")
            others = () if arm in ("source", "kernel 4") or not found[arm] else ("source", "kernel 4")
            lines += [
                f"        minus {base}: {with_interval(paired(found[arm], found[base]).values())}" for base in others
            ]
    return "\n".join(lines) + "\n"


def report(out: Path) -> None:
    """Write the table and picture of the finished runs."""
    runs = read_lines(out / RUNS)
    if not runs:
        return
    text = to_text(out)
    write_whole(out / RESULTS, lambda file: file.write_text(text, encoding="utf-8"))
    print(text)
    plot(runs, out / PICTURE)


def plot(runs: list[Row], path: Path) -> None:
    """Draw every run as a point, and the mean of each arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(BUDGETS), figsize=(9, 3), sharey=True, layout="tight")
    for axis, budget in zip(axes, BUDGETS, strict=True):
        for place, scores in enumerate(figures(runs, budget).values()):
            values = list(scores.values())
            axis.plot([place] * len(values), values, "o", alpha=0.6)
            if values:
                axis.hlines(statistics.fmean(values), place - 0.3, place + 0.3, colors="black")
        axis.set_xticks(range(len(ARMS)), ARMS, fontsize=8)
        axis.set_title(f"equal {budget}")
    axes[0].set_ylabel("accuracy, %")
    write_whole(path, lambda file: figure.savefig(file, dpi=100, format="png"))
    pyplot.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="image folder written by tools/cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="destination directory")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    text = f"of {TUNING.epoch_steps} steps, half of the images"
    parser.add_argument("--epochs", type=int, default=TUNING.epochs, help=text)
    parser.add_argument("--threads", type=int, default=1)
    sweep.add_bfloat16(parser)
    parser.add_argument("--report", action="store_true", help="only table and picture, from existing runs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Do the missing runs, then write the report; return the exit code."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        run_all(args)
    report(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
