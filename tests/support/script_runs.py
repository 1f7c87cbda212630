"""Runs timm's and torchvision's unmodified scripts like a user: a subprocess on an image folder."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

CLASSES, TRAIN, VALIDATION = 10, 4, 3
"""Ten classes, like the embedded weights; images per class in each split."""

NAME = "vit_nano4_convstem"
BASE = f"--model {NAME} --device cpu --batch-size 20 --workers 0 --no-aug --warmup-epochs 0 --opt adamw --lr 1e-3"
"""Flags for every call of timm's train.py; later flags override them."""

TWO_PROCESSES: dict[str, Any] = {"launcher": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")}


@dataclass(frozen=True)
class Scripts:
    """A folder of scripts, an image folder for them, and their output folder."""

    folder: Path
    images: Path
    out: Path

    def run(
        self,
        script: str,
        *arguments: Any,
        launcher: Iterable[str] = (),
        code: str | None = None,
        fails: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run a script (or ``python -c CODE``) in its folder; return all of its output."""
        target = ["-c", code] if code else [*launcher, script]
        command = [sys.executable, *target, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": import_path(), **(env or {})}
        done = subprocess.run(command, cwd=self.folder, env=environment, check=False, capture_output=True, text=True)
        printed = done.stdout + done.stderr
        assert bool(done.returncode) == fails, f"exit code {done.returncode}\n{printed[-6000:]}"
        return printed


def import_path() -> str:
    """Return PYTHONPATH with this folder on it, for cpu_ddp.py."""
    return os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))


def write_images(root: Path) -> Path:
    """Write an image folder of flat colours: cropping, flipping and reordering change nothing."""
    for split, count in (("train", TRAIN), ("validation", VALIDATION)):
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                colour = (25 * label + index, 255 - 20 * label, (90 * label) % 255 + (split == "train"))
                Image.new("RGB", (32, 32), colour).save(folder / f"{label}_{index}.png")
    (root / "val").symlink_to("validation")  # torchvision's name
    return root


def read_checkpoint(path: Path) -> Any:
    """Return a training checkpoint. It holds the script's argparse namespace, so it needs the full unpickler."""
    return torch.load(path, map_location="cpu", weights_only=False)


def largest_gap(a: Any, b: Any) -> float:
    """Return the largest absolute difference between two nested states of the same shape."""
    if isinstance(a, torch.Tensor):
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((largest_gap(a[key], b[key]) for key in a), default=0.0)
    return abs(float(a) - float(b))


@dataclass(frozen=True)
class Run:
    """The results of a call of train.py."""

    folder: Path
    log: str

    @property
    def checkpoint(self) -> dict[str, Any]:
        return read_checkpoint(self.folder / "last.pth.tar")

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.checkpoint["state_dict"]

    @property
    def lr_scales(self) -> set[float]:
        return {group.get("lr_scale", 1.0) for group in self.checkpoint["optimizer"]["param_groups"]}

    @property
    def summary(self) -> list[dict[str, str]]:
        with open(self.folder / "summary.csv") as file:
            return list(csv.DictReader(file))


def train(scripts: Scripts, experiment: str, *flags: Any, epochs: int = 1, **options: Any) -> Run:
    """Call timm's train.py with ``BASE`` and further flags."""
    where = ["--data-dir", scripts.images, "--output", scripts.out, "--experiment", experiment]
    log = scripts.run("train.py", *where, *BASE.split(), "--epochs", epochs, *flags, **options)
    return Run(scripts.out / experiment, log)
