"""Make ``registry/cifar10_samples``: the first four CIFAR-10 test images of each class, as one lossless PNG.

``images.png`` is a grid of 32x32 images, one column per class in label order and one row per image;
``samples.json`` has the source of each image. No image is chosen by its content or by a model's prediction.

    python -m tools.cifar10 DATA
    python -m tools.cifar10_samples DATA registry/cifar10_samples
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tools.cifar10 import CLASSES, SIZE

PER_CLASS = 4
"""Images of each class, the rows of the grid."""

ATTRIBUTION = (
    'CIFAR-10 test set: Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", '
    "technical report, University of Toronto, 2009."
)

COMMANDS = [
    "python -m tools.cifar10 DATA",
    "python -m tools.cifar10_samples DATA registry/cifar10_samples",
]


class SampleError(Exception):
    """The image folder does not have the CIFAR-10 test set."""


def first_images(folder: Path) -> list[Path]:
    """Return the first images of one class folder in test-set order."""
    paths = sorted(folder.glob("*.png"), key=lambda path: int(path.stem))[:PER_CLASS]
    if len(paths) < PER_CLASS:
        raise SampleError(f"{folder} has {len(paths)} images; run tools/cifar10.py first")
    return paths


def make_grid(columns: list[list[Path]]) -> Image.Image:
    """Return the images as a grid with one column per list."""
    grid = Image.new("RGB", (SIZE * len(columns), SIZE * PER_CLASS))
    for x, paths in enumerate(columns):
        for y, path in enumerate(paths):
            with Image.open(path) as image:
                grid.paste(image.convert("RGB"), (SIZE * x, SIZE * y))
    return grid


def describe(columns: list[list[Path]]) -> dict[str, Any]:
    """Return the content of ``samples.json``, row by row as in the grid."""
    images = [
        {"row": row, "column": column, "class": name, "label": column, "test_index": int(columns[column][row].stem)}
        for row in range(PER_CLASS)
        for column, name in enumerate(CLASSES)
    ]
    return {
        "attribution": ATTRIBUTION,
        "selection": f"the first {PER_CLASS} images of each class in test-set order",
        "commands": COMMANDS,
        "layout": {"file": "images.png", "rows": PER_CLASS, "columns": len(CLASSES), "image_size": SIZE},
        "classes": list(CLASSES),
        "images": images,
    }


def to_json(samples: dict[str, Any]) -> str:
    """Return the description as JSON with one line per image."""
    text = json.dumps({**samples, "images": []}, indent=2)
    lines = ",\n".join("    " + json.dumps(image) for image in samples["images"])
    return text.replace('"images": []', f'"images": [\n{lines}\n  ]') + "\n"


def write_samples(data: Path, out: Path) -> None:
    """Write ``images.png`` and ``samples.json``.

    Args:
        data: the image folder written by ``tools/cifar10.py``.
        out: destination directory; files in it are replaced.
    """
    columns = [first_images(data / "validation" / name) for name in CLASSES]
    out.mkdir(parents=True, exist_ok=True)
    make_grid(columns).save(out / "images.png", optimize=True)
    (out / "samples.json").write_text(to_json(describe(columns)), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Make registry/cifar10_samples from a CIFAR-10 image folder.")
    parser.add_argument("data", type=Path, help="image folder written by tools/cifar10.py")
    parser.add_argument("out", type=Path, help="destination directory")
    args = parser.parse_args(argv)
    try:
        write_samples(args.data, args.out)
    except SampleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
