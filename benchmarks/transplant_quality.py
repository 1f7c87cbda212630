"""How well transplant preserves the function, and what it costs: one table, every number measured in this run.

    python -m benchmarks.transplant_quality [--quick] [--weights FILE.safetensors]   # --quick: a subset without bf16

The first part runs the real ViT-S/14 that tools/dinov2_vit_small.py fetches, as patch 16 at 256 pixels; the second
compares patch embeddings with random filters, or with those of that model. ``natural`` images are crops of photographs
that no transplant saw; ``random`` ones have independent uniform pixels over the whole pixel range.
Needs scikit-image and scikit-learn for the photographs, and onnx unless ``--weights`` is given.

An error is the norm of the difference to the original model, run in the same precision unless the row says otherwise,
over the norm of the original's values. Constant parts would hide errors, so they are taken out of the denominator:
the bias of a patch embedding, the mean of final features (separately for class token and patch tokens). ``logits``
are a fixed random 1000-way head on those centred features; it is not trained.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.transplant_quality_cases import channel_row, control_rows, exact_rows, narrow_row, trunk_rows
from benchmarks.transplant_quality_cost import cost_rows, probe
from benchmarks.transplant_quality_images import CALIBRATION, HELD_OUT, SIZE, corners, crops, outside, uniform
from benchmarks.transplant_quality_table import Table
from convstem import transplant

TRUNK_SIZE = 256
"""Pixels of the images for the real model."""

CROPS = 8
"""Crops of each photograph for the real model."""

CALIBRATION_CROPS = 16
"""Crops of each calibration photograph: 768 x 768 covariances need many patches."""

# Name, patch, width, float32 bar, and whether every layer is an identity: then 8/255 outside the range is as inside.
DEFAULTS = (
    ("B/16", 16, 768, 2e-6, True),
    ("L/16", 16, 1024, 2e-6, True),
    ("Ti/8", 8, 192, 2e-6, True),
    ("S/8", 8, 384, 2e-6, True),
    ("B/8", 8, 768, 2e-6, True),
    ("L/8", 8, 1024, 2e-6, True),
    ("S/16", 16, 384, 1e-5, True),
    ("Ti/16", 16, 192, 1e-5, True),
    ("S/32", 32, 384, 1e-4, False),
    ("B/32", 32, 768, 1e-4, False),
    ("L/32", 32, 1024, 1e-4, False),
)

CHANNELS = (1, 2, 4, 5, 6, 13)
"""Input channels besides three."""

QUICK = ("B/16", "S/8", "Ti/16", "S/32")

COSTS = (("B/16", "vit_base_patch16_224", 5.0), ("L/16", "vit_large_patch16_224", 10.0))


def circumstances() -> str:
    """Return machine, load and versions."""
    names = ("convstem", "torch", "torchvision", "timm", "numpy", "scikit-image", "scikit-learn")
    load = os.getloadavg()[0]
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, load {load:.1f}\n"
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in names)
        + f"\nheld-out photographs: {', '.join(HELD_OUT)}\ncalibration photographs: {', '.join(CALIBRATION)}"
    )


def processor() -> str:
    """Return the processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def real_model(weights: Path | None) -> Any:
    """Return the real ViT-S as patch 16, from a file or through the recipe."""
    from tools import dinov2_vit_small as recipe

    if weights:
        return recipe.load_patch16(weights)
    with tempfile.TemporaryDirectory() as folder:
        recipe.write(Path(folder) / "model.safetensors")
        return recipe.load_patch16(Path(folder) / "model.safetensors")


@torch.no_grad()
def measure(table: Table, source: Any, quick: bool) -> None:
    """Measure and print everything.

    Args:
        table: prints.
        source: the real model.
        quick: a subset.
    """
    # A single crop's error in bfloat16 varies twofold: a few say nothing about the ratio, so --quick leaves it out.
    kinds = crops(HELD_OUT, 1 if quick else CROPS, TRUNK_SIZE), uniform(4, TRUNK_SIZE)
    twin: Any = transplant(source)
    stem = "-".join(str(layer.width) for layer in twin.transplant_report.layers)
    table.section(
        f"End to end: the real ViT-S/16, stem {stem}; {len(kinds[0])} natural and {len(kinds[1])} random images"
    )
    table.add(control_rows(source, twin, kinds))
    table.add(trunk_rows(source, twin, kinds, bf16=not quick))

    natural, random = crops(HELD_OUT, 1, SIZE), uniform(2, SIZE)
    images = natural, random, outside(natural), corners(2, SIZE)
    table.section(f"Patch embeddings: {len(natural)} natural and {len(random)} random images of {SIZE} pixels")
    for case, patch, width, bar, beyond in DEFAULTS:
        if not quick or case in QUICK:
            table.add(exact_rows(case, patch, width, bar, beyond, images))
    filters = source.patch_embed.proj.weight
    # 384 filters would fit into the stem's 512 channels; with their mirror images they are as many as ViT-B has.
    mirrored = torch.cat([filters, filters.flip(-1)])
    calibration = crops(CALIBRATION, CALIBRATION_CROPS, SIZE)
    for kind, bar, given in (("real filters + mirrored", 5e-4, mirrored), ("random filters", 1e-2, None)):
        case = f"paper 18GF stem (last layer 512), {kind}"
        table.add(
            [narrow_row(case, given, bar, images), narrow_row(f"{case}, calibrated", given, bar, images, calibration)]
        )

    table.section("Other input channels: pixels from -2 to 2 (first), noise of three standard deviations (second)")
    for case, patch, width, _, beyond in DEFAULTS:
        if beyond and case in QUICK:
            table.add([channel_row(case, patch, width, in_chans) for in_chans in CHANNELS])

    table.section("Cost: whole models with random weights, each in a process of its own")
    for row in COSTS[: 1 if quick else None]:
        table.add(cost_rows(*row))


def main() -> int:
    """Print the table; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a subset, in under a minute")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="what tools/dinov2_vit_small.py wrote")
    parser.add_argument("--probe", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        print(json.dumps(probe(args.probe)))
        return 0
    start = time.perf_counter()
    table = Table()
    print(f"python -m benchmarks.transplant_quality{' --quick' if args.quick else ''}\n{circumstances()}", flush=True)
    measure(table, real_model(args.weights), args.quick)
    print(f"\n{'missed: ' + '; '.join(table.missed) if table.missed else 'every bar is met'}")
    print(f"{time.perf_counter() - start:.0f} s in all, {time.process_time():.0f} s of processor time")
    return int(bool(table.missed))


if __name__ == "__main__":
    sys.exit(main())
