"""The gain of a transplant: a good patchify ViT is fine-tuned as it is, with a transplanted stem, and with a new stem.

Every start is trained with AdamW and with SGD, in batches of 128 and of 8, as a whole and with a frozen trunk. The
transplant is trained for as many steps as the patchify model and, with fewer steps because they are slower, for as much
time.

    python -m tools.cifar10 DATA
    python -m experiments.nano4 --data-dir DATA --out NANO4 --threads 2 --stages teacher
    python -m experiments.cifar10 --data-dir DATA --out SOURCE --threads 1 \\
        --teacher NANO4/teacher --teacher-share 0.8 --views 12 \\
        --model vit_tiny_patch16_224 --epochs 80 --warmup-epochs 3 --small-epochs 32 \\
        --cutmix 1 --mixup-prob 0.5 --mixup-off-epoch 70 --model-ema-decay 0.999 --amp --no-fused-attn \\
        --model-kwargs img_size=32 patch_size=4 embed_dim=96 depth=7 num_heads=3 mlp_ratio=2
    python -m experiments.transplant_gain --data-dir DATA --out OUT --source SOURCE --jobs 2

The real DINOv2 ViT-S with a linear head is another source: ``experiments.linear_probe``, then ``--size 64 --steps 39
--images 5000`` and other rates here. OUT/runs.jsonl gets a line for each finished run, and the same command continues
from there; OUT gets ``results.txt`` and ``gain.png``.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convstem import transplant
from convstem.files.paths import write_whole
from convstem.registry.stem_spec import default_stem
from convstem.transplanting.surgery import put_stem
from experiments import transplant_gain_report as report
from experiments.cifar10 import data, sweep
from experiments.cifar10.data import MEAN, STD, Split
from experiments.cifar10.models import count
from experiments.cifar10.settings import Settings, differences
from experiments.cifar10.training import CHECKPOINT, Training, accuracy, load_trained
from experiments.machine import environment
from experiments.runs import carry_out as in_processes
from experiments.transplant_gain_report import STARTS, Job, Result
from tools.cifar10 import SIZE

SCOPES = ("all", "stem and head")
BUDGETS = ("steps", "time")
RATES = {"adamw": 1e-3, "sgd": 0.02}
"""Peak rates for batches of 128, the same for every start."""

EXPONENTS = {"adamw": 0.5, "sgd": 1.0}
"""AdamW's rate scales with the square root of the batch, SGD's in proportion."""

DECAY = {"adamw": 0.05, "sgd": 0.0}
STEPS_MORE = 4
"""Factor by which there are more steps of 8 images than of 128."""

TIMED_STEPS = 8
LAST = 20
"""Number of last steps over which the training loss is averaged."""


def load_source(folder: Path, device: str) -> nn.Module:
    """Return the trained patchify model of a folder, in eval mode.

    Raises:
        ValueError: the folder has no training.
    """
    if not (folder / CHECKPOINT).is_file():
        raise ValueError(
            f"expected the folder of a training with {CHECKPOINT}; got {folder}: "
            "train a source with experiments.cifar10, or make one of pretrained weights with experiments.linear_probe"
        )
    model: Any = load_trained(folder, device)
    model.pretrained_cfg.update(mean=MEAN, std=STD)  # a transplant needs them
    return model


def start_model(job: Job, source: nn.Module) -> nn.Module:
    """Return a fresh copy of the model that a run starts from; parameters outside its scope are frozen."""
    model: Any = copy.deepcopy(source)
    if job.start == "transplant":
        model = transplant(source)
    if job.start == "new stem":
        torch.manual_seed(job.seed)
        patch, channels = model.patch_embed.patch_size[0], model.patch_embed.proj.in_channels
        put_stem(model, default_stem(patch, model.embed_dim, channels))
    if job.scope != "all":
        model.requires_grad_(False)
        for part in (model.patch_embed, model.get_classifier()):
            part.requires_grad_(True)
    return model


def settings_of(job: Job, args: argparse.Namespace, steps: int) -> Settings:
    """Return the settings of a run, which is one long epoch."""
    rate = args.rates[job.optimizer] * (job.batch / 128) ** EXPONENTS[job.optimizer]
    return Settings(
        epochs=1, epoch_steps=steps, batch_size=job.batch, opt=job.optimizer, lr=rate,
        weight_decay=DECAY[job.optimizer], layer_decay=args.layer_decay, clip_grad=1.0,
        warmup_epochs=0.05, size=args.size, seed=job.seed,
        **args.bfloat16,
    )  # fmt: skip


def chosen(split: Split, args: argparse.Namespace) -> Split:
    """Return the images for the runs."""
    return data.of_each_class(split, None, args.images or None)


def step_time(job: Job, source: nn.Module, images: Split, args: argparse.Namespace) -> float:
    """Return the median time of a training step, in seconds."""
    settings = settings_of(job, args, TIMED_STEPS)
    training = Training(settings, images, args.device, model=start_model(job, source).train())
    times = []
    for update, (batch, rows) in enumerate(data.batches(images, 0, settings)):
        begin = time.perf_counter()
        training.step(batch, training.targets(rows, None), update)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def time_ratios(source: nn.Module, images: Split, args: argparse.Namespace) -> dict[str, float]:
    """Return the ratio of a conv stem's step time to the patchify model's, by scope and batch."""
    ratios = {}
    for scope, batch in product(SCOPES, args.batches):
        plain, stem = (Job(start, scope, "adamw", batch, "steps", 0) for start in STARTS[:2])
        pairs = [[step_time(job, source, images, args) for job in (plain, stem)] for _ in range(3)]
        ratios[f"{scope}, {batch}"] = statistics.median(second / first for first, second in pairs)
    return ratios


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """Return the shared conditions of all runs in a folder; they are measured once, then read from it.

    Raises:
        ValueError: the folder was begun from another source or with other settings, or there are too few images.
    """
    shared = {name: getattr(args, name) for name in ("size", "steps", "images", "batches", "rates", "layer_decay")}
    settings = {"source": args.source.name, **shared, **args.bfloat16}
    path = args.out / report.CONDITIONS
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if changed := differences(found["settings"], settings):
            raise ValueError(f"{args.out} was begun with {changed}: choose another --out, or the same settings")
        return found
    images, test = data.read(args.data_dir, Settings(), args.device)
    jobs = [Job(start, "all", "adamw", max(args.batches), "steps", 0) for start in STARTS]
    data.steps_of(chosen(images, args), settings_of(jobs[0], args, args.steps))
    source = load_source(args.source, args.device)
    found = {
        "settings": settings,
        "accuracy": accuracy(source, test, args.size),
        "gmacs": {job.start: count(start_model(job, source), args.size or SIZE)["gmacs"] for job in jobs},
        "time_ratios": time_ratios(source, images, args),
        "environment": environment(args.jobs, device=args.device),
    }
    write_whole(path, lambda file: file.write_text(json.dumps(found, indent=1), encoding="utf-8"))
    return found


def steps_of(job: Job, args: argparse.Namespace, ratios: Mapping[str, float]) -> int:
    """Return the number of steps of a run."""
    steps = args.steps * (1 if job.batch == max(args.batches) else STEPS_MORE)
    slower = ratios[f"{job.scope}, {job.batch}"] if job.budget == "time" and job.start != "patchify" else 1
    return max(round(steps / slower), 1)


def carry_out(job: Job, args: argparse.Namespace, ratios: Mapping[str, float]) -> Result:
    """Fine-tune one model and return its result; called in a separate process."""
    settings = settings_of(job, args, steps_of(job, args, ratios))
    images, test = data.read(args.data_dir, settings, args.device)
    images, test = (data.move(chosen(part, args), args.device) for part in (images, test))
    model = start_model(job, load_source(args.source, args.device))
    training = Training(settings, images, args.device, model=model)
    row = training.run_epoch(0)
    score = accuracy(model.eval(), test, args.size)
    return Result(score, statistics.fmean(training.losses[-LAST:]), training.steps, row["cpu_seconds"])


def planned(args: argparse.Namespace) -> list[Job]:
    """Return all runs, seed by seed with the starts side by side; only the transplant has both budgets."""
    combined = product(args.seeds, ("adamw", "sgd"), args.batches, SCOPES, BUDGETS, STARTS)
    jobs = [Job(start, scope, name, batch, budget, seed) for seed, name, batch, scope, budget, start in combined]
    return [job for job in jobs if job.budget == "steps" or job.start == "transplant"]


def run_all(args: argparse.Namespace, ratios: Mapping[str, float]) -> None:
    """Do the missing runs, several at a time; save each when it ends."""
    done, jobs = report.read_results(args.out), planned(args)
    calls = {job: (job, args, ratios) for job in jobs if job not in done}
    for job, result in in_processes(carry_out, calls, args.jobs, len(jobs)):
        report.append_result(args.out, job, result)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sweep.add_flags(parser)
    sweep.add_bfloat16(parser)
    parser.add_argument("--source", type=Path, required=True, help="folder of the patchify model's training")
    parser.add_argument("--size", type=int, default=0, help="side of the images in pixels; 0: as they are")
    parser.add_argument(
        "--steps", type=int, default=390, help="with the larger batch; four times as many with the smaller"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 8], choices=[128, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=0, help="first images of each class, in all; 0: all")
    parser.add_argument(
        "--layer-decay", type=float, default=0.0, help="factor of the rate from each layer down; 0: none"
    )
    for name, rate in RATES.items():
        parser.add_argument(f"--{name}-rate", type=float, default=rate, help=f"of {name} in batches of 128")
    args = parser.parse_args(argv)
    args.rates = {name: getattr(args, f"{name}_rate") for name in RATES}
    return args


def main(argv: list[str] | None = None) -> int:
    """Do the missing runs, then print the table; return the exit code."""
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        run_all(args, conditions(args)["time_ratios"])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report.write(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
