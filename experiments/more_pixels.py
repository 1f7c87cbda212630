"""More pixels for the same tokens: what does fine-tuning make of them, from a function that is the source's at first?

A small ViT is trained on CIFAR-10 at 16 x 16 pixels, patch 2. From it every arm is fine-tuned, for as many steps and
for as long as the source itself:

    source     the source at 16 px, 64 tokens: what the pixels are compared with
    stride 4   its transplant with stride 4 at 32 px, 64 tokens: at first the source on averages of 2 x 2 pixels
    averages   the same with a leaner stem: its first layer carries the averages, beside channels that are free to learn
    kernel 4   the plain ViT at 32 px with its kernel spread over 4 x 4 pixels, 64 tokens: the same function at first
    patch 2    the plain ViT at 32 px, 256 tokens, positions resampled: the ceiling, at four times the tokens

    python -m tools.cifar10 DATA
    python -m experiments.more_pixels --data-dir DATA --out OUT --threads 1

A run that is killed goes on from its last checkpoint in OUT/runs/NAME; OUT/runs.jsonl gets a line when one is done. OUT
gets ``results.txt`` and ``more_pixels.png``, of the runs there are; ``--report`` writes only these.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
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
from convstem.stem.carry import spread
from experiments.cifar10 import data, models
from experiments.cifar10.data import MEAN, STD, Split
from experiments.cifar10.settings import Settings
from experiments.cifar10.training import Training, accuracy, load_trained, train
from experiments.machine import machines
from experiments.runs import RUNS, Row, append_line, by_name, read_lines
from tools.cifar10 import SIZE

ARMS = ("source", "stride 4", "averages", "kernel 4", "patch 2")
BUDGETS = ("steps", "time")
SMALL, PATCH = SIZE // 2, 2
TRUNK = {"img_size": SMALL, "patch_size": PATCH, "embed_dim": 96, "depth": 5, "num_heads": 3, "mlp_ratio": 2}
SOURCE = Settings(
    model="vit_tiny_patch16_224", model_kwargs={**TRUNK, **models.CFG}, epochs=6, size=SMALL, crop=2, eval_interval=1
)
TUNING = Settings(
    model=SOURCE.model, model_kwargs=SOURCE.model_kwargs, epochs=2, epoch_steps=195, opt="adamw", lr=1e-3,
    clip_grad=1.0, warmup_epochs=0.1,
)  # fmt: skip
CONDITIONS, PICTURE, RESULTS = "conditions.json", "more_pixels.png", "results.txt"
T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t for a 95 % interval, by the number of seeds."""


def halved(split: Split) -> Split:
    """Return images at half the height and width: averages of 2 x 2 pixels, rounded to bytes."""
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
        weight = spread(model.patch_embed.proj.weight.detach(), 4)
        model.set_input_size(img_size=SIZE, patch_size=4)
        model.patch_embed.proj.weight = nn.Parameter(weight)
    if arm == "patch 2":
        model.set_input_size(img_size=SIZE)
    return model.train()


def settings_of(arm: str, seed: int, steps: int) -> Settings:
    """Return how an arm is trained; its images are shifted by as much of their side."""
    size, crop = (SMALL, 2) if arm == "source" else (0, 4)
    return replace(TUNING, size=size, crop=crop, seed=seed, epoch_steps=max(steps // TUNING.epochs, 1))


def images_of(arm: str, split: Split) -> Split:
    """Return the images that an arm sees."""
    return halved(split) if arm == "source" else split


def step_time(arm: str, source: nn.Module, images: Split) -> float:
    """Return the median time of a training step, in seconds."""
    training = Training(settings_of(arm, 0, 8), images_of(arm, images), model=start_model(arm, source))
    times = []
    for update, (batch, rows) in enumerate(data.batches(training.images, 0, training.settings)):
        begin = time.process_time()
        training.step(batch, training.targets(rows, None), update)
        times.append(time.process_time() - begin)
    return statistics.median(times)


def conditions(source: nn.Module, images: Split, test: Split, out: Path) -> dict[str, Any]:
    """Return what is measured once: how much longer a step of each arm takes, its cost, and its accuracy untrained."""
    path = out / CONDITIONS
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    times = {arm: statistics.median(step_time(arm, source, images) for _ in range(3)) for arm in ARMS}
    found: dict[str, Any] = {"ratios": {arm: times[arm] / times["source"] for arm in ARMS}, "arms": {}}
    for arm in ARMS:
        model: Any = start_model(arm, source).eval()
        untrained = accuracy(model, images_of(arm, test), SMALL if arm == "source" else 0)
        cost = models.count(model, SMALL if arm == "source" else SIZE)
        found["arms"][arm] = {"untrained": untrained, "tokens": model.patch_embed.num_patches, **cost}
    write_whole(path, lambda file: file.write_text(json.dumps(found, indent=1), encoding="utf-8"))
    return found


def train_source(images: Split, test: Split, out: Path) -> nn.Module:
    """Return the source, trained to its last epoch."""
    training = Training(SOURCE, halved(images))
    train(training, halved(test), out / "source", show=True)
    model: Any = load_trained(out / "source", "cpu")
    model.pretrained_cfg.update(mean=MEAN, std=STD)  # the pixels it sees, which a transplant asks for
    return model


def run(name: str, settings: Settings, arm: str, source: nn.Module, images: Split, test: Split, out: Path) -> Row:
    """Fine-tune one arm from its last checkpoint and return its line."""
    training = Training(settings, images_of(arm, images), model=start_model(arm, source))
    train(training, images_of(arm, test), out / "runs" / name, show=True)
    return {"run": name, "arm": arm, "accuracy": training.history[-1]["accuracy"], **training.record()}


def run_all(args: argparse.Namespace) -> None:
    """Do the runs that are not done, seed by seed and the arms side by side; keep each as it ends."""
    images, test = data.read(args.data_dir, SOURCE, "cpu")
    source = train_source(images, test, args.out)
    ratios = conditions(source, images, test, args.out)["ratios"]
    done = by_name(args.out)
    for seed, budget, arm in product(args.seeds, BUDGETS, ARMS):
        name = f"{arm}-{budget}-{seed}".replace(" ", "_")
        if name in done or (arm, budget) == ("source", "time"):  # both budgets are its own
            continue
        whole = TUNING.epochs * TUNING.epoch_steps
        steps = whole if budget == "steps" else round(whole / ratios[arm])
        row = run(name, settings_of(arm, seed, steps), arm, source, images, test, args.out)
        append_line(args.out / RUNS, {**row, "budget": budget, "seed": seed})
        report(args.out)


def figures(runs: list[Row], budget: str) -> dict[str, list[float]]:
    """Return the accuracies of each arm, by seed."""
    own = [row for row in runs if row["budget"] == budget or row["arm"] == "source"]
    return {arm: [row["accuracy"] for row in own if row["arm"] == arm] for arm in ARMS}


def in_words(values: list[float]) -> str:
    """Return mean, spread and, of two and more, the 95 % interval of the mean."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "-"
    spread_, count = statistics.stdev(values), len(values)
    half = T.get(count, 2.0) * spread_ / count**0.5
    return f"{statistics.fmean(values):.2f} +- {spread_:.2f} [{-half:+.2f}, {half:+.2f}], {count} seeds"


def report(out: Path) -> None:
    """Write table and picture of the runs there are."""
    runs = read_lines(out / RUNS)
    if not runs:
        return
    known = json.loads((out / CONDITIONS).read_text(encoding="utf-8"))
    lines = ["accuracy in per cent: mean +- spread [95 % interval]", ""]
    for arm in ARMS:
        about = known["arms"][arm]
        lines.append(
            f"{arm:<9} {about['tokens']:>3} tokens, {about['gmacs']:.4f} GMACs, step {known['ratios'][arm]:.2f} x, "
            f"untrained {about['untrained']:.2f}"
        )
        lines += [f"    equal {budget}: {in_words(figures(runs, budget)[arm])}" for budget in BUDGETS]
    text = "\n".join([*lines, "", *machines(runs), ""])
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
        for place, values in enumerate(figures(runs, budget).values()):
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="only table and picture, of the runs there are")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Do what is missing, then write the report; return the exit code."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        run_all(args)
    report(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
