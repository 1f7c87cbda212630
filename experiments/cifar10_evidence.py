"""Does a conv stem train faster, and with less care about optimizer and learning rate? CIFAR-10, from scratch.

Runs timm's own train.py, unmodified, for every combination of architecture, stem, optimizer, learning rate and seed;
the patchify twin is timm's ``vit_tiny_patch16_224`` with the same trunk. Interrupt it freely: it goes on where it was.

    python -m tools.cifar10 DATA
    python -m experiments.cifar10_evidence --train-py CLONE/train.py --data-dir DATA --out OUT \\
        --models vit_nano4_convstem --train-images 5000 --test-images 2000 --epochs 8 --jobs 2    # two CPU cores
    python -m experiments.cifar10_evidence --train-py CLONE/train.py --data-dir DATA --out XS4 \\
        --models vit_xs4_convstem --optimizers adamw --rates adamw=1e-3 \\
        --train-images 5000 --test-images 1000 --epochs 5 --jobs 2
    python -m experiments.cifar10_evidence --train-py CLONE/train.py --data-dir DATA --out OUT \\
        --device cuda --epochs 100 --seeds 0 1 2 --jobs 8 --workers 2                             # a GPU, 16 cores

Writes OUT/runs/NAME/summary.csv (train.py's), OUT/results.txt and OUT/curves.png; ``--report`` does only the last two.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cifar10_evidence_report as report

from convstem.registry import catalog
from convstem.registry.records import ModelSpec

CONFIG = Path(__file__).with_suffix(".yaml")
STEMS = ("conv", "patchify")

OPTIMIZERS = {"adamw": (0.05, (2.5e-4, 1e-3, 4e-3, 1.6e-2)), "sgd": (1e-4, (0.01, 0.04, 0.16, 0.64))}
"""Weight decay and learning rates of each optimizer: factors of four about the usual one."""


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

    @property
    def flags(self) -> list[str]:
        """Flags of train.py that make this run."""
        decay, _ = OPTIMIZERS[self.optimizer]
        return [
            *model_flags(catalog.models()[self.model], self.stem),
            *f"--opt {self.optimizer} --lr {self.rate:g} --weight-decay {decay:g} --seed {self.seed}".split(),
        ]


def model_flags(spec: ModelSpec, stem: str) -> list[str]:
    """Return the flags for an architecture, or for its patchify twin: the same trunk, in timm's own model."""
    if stem == "conv":
        return ["--model", spec.name]
    trunk = {name: getattr(spec, name) for name in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
    arguments = [f"{name}={value}" for name, value in {"img_size": 32, **trunk}.items()]
    return ["--model", "vit_tiny_patch16_224", "--model-kwargs", *arguments]


def link_images(source: Path, target: Path, count: int) -> None:
    """Make ``target`` an image folder of the first images of each class, ``count`` in all (0: all of them)."""
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    for folder in classes:
        images = sorted(folder.iterdir())
        (target / folder.name).mkdir(parents=True, exist_ok=True)
        for image in images[: count // len(classes)] if count else images:
            link = target / folder.name / image.name
            if not link.is_symlink():
                link.symlink_to(image.resolve())


def check_settings(args: argparse.Namespace) -> None:
    """Write down what all runs of ``--out`` share, or stop if it was begun with something else."""
    settings = {name: getattr(args, name) for name in ("epochs", "batch_size", "train_images", "test_images")}
    path = args.out / "settings.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise SystemExit(
            f"{path} was begun with {path.read_text(encoding='utf-8')}, not {settings}: choose another --out"
        )
    path.write_text(json.dumps(settings), encoding="utf-8")


def prepare(args: argparse.Namespace) -> None:
    """Copy train.py away from its clone, so that it imports the installed timm, and link the images."""
    args.out.mkdir(parents=True, exist_ok=True)
    check_settings(args)
    shutil.copy(args.train_py, args.out / "train.py")
    link_images(args.data_dir / "train", args.out / "images" / "train", args.train_images)
    link_images(args.data_dir / "validation", args.out / "images" / "validation", args.test_images)


def epochs_done(summary: Path) -> int:
    """Return how many epochs a run has finished; train.py repeats the header line when it resumes."""
    if not summary.exists():
        return 0
    with open(summary, encoding="utf-8") as file:
        return max((int(row["epoch"]) + 1 for row in csv.DictReader(file) if row["epoch"].isdigit()), default=0)


def train(run: Run, args: argparse.Namespace) -> None:
    """Run train.py to the end of the schedule, from its last checkpoint if there is one; skip a finished run."""
    folder = args.out / "runs" / run.name
    last = folder / "last.pth.tar"
    if epochs_done(folder / "summary.csv") >= args.epochs:
        return
    where = ["--data-dir", "images", "--output", "runs", "--experiment", run.name, "--config", str(CONFIG.resolve())]
    how = f"--device {args.device} --epochs {args.epochs} --batch-size {args.batch_size} --workers {args.workers}"
    resume = ["--resume", str(last.relative_to(args.out))] if last.exists() else []
    command = [sys.executable, "train.py", *where, *how.split(), *run.flags, *resume]
    threads = str(max((os.cpu_count() or 1) // args.jobs, 1))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.log", "a", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=args.out, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise RuntimeError(f"train.py failed with exit code {done.returncode}: see {folder / 'train.log'}")
    print(f"finished {run.name}", flush=True)


def planned(args: argparse.Namespace) -> list[Run]:
    """Return all runs, seed by seed and stems side by side, so that an interrupted table is still a fair one."""
    rates = [(name, rate) for name in args.optimizers for rate in args.rates.get(name, OPTIMIZERS[name][1])]
    combined = itertools.product(args.seeds, args.models, rates, STEMS)
    return [Run(model, stem, name, rate, seed) for seed, model, (name, rate), stem in combined]


def parse_rates(text: str) -> tuple[str, tuple[float, ...]]:
    """Parse ``adamw=1e-3,4e-3``."""
    name, _, values = text.partition("=")
    if name not in OPTIMIZERS or not values:
        raise argparse.ArgumentTypeError(f"expected OPTIMIZER=RATE,RATE,... with {' or '.join(OPTIMIZERS)}; got {text}")
    return name, tuple(float(value) for value in values.split(","))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="destination directory")
    parser.add_argument("--train-py", type=Path, help="timm's train.py, from a clone of its repository")
    parser.add_argument("--data-dir", type=Path, help="image folder written by tools/cifar10.py")
    parser.add_argument("--models", nargs="+", default=["vit_nano4_convstem", "vit_xs4_convstem"])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--rates", type=parse_rates, nargs="+", default=[], help="adamw=RATE,... sgd=RATE,...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-images", type=int, default=0, help="first images of each class, in all; 0: all")
    parser.add_argument("--test-images", type=int, default=0, help="the same for the test images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="data workers of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--report", action="store_true", help="only print the table and draw the plots")
    args = parser.parse_args(argv)
    args.rates = dict(args.rates)
    if not args.report and not (args.train_py and args.data_dir):
        parser.error("--train-py and --data-dir are needed, unless --report is given")
    return args


def main() -> None:
    """Train what is missing, then report."""
    args = parse_args()
    if not args.report:
        prepare(args)
        with ThreadPoolExecutor(args.jobs) as pool:
            for _ in pool.map(lambda run: train(run, args), planned(args)):
                pass
    report.write(args.out)


if __name__ == "__main__":
    main()
