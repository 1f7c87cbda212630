"""Which default stem: candidates of each trunk size and patch, with cost, errors, speed and accuracy in one table.

    python -m benchmarks.stem_candidates errors
    python -m benchmarks.stem_candidates forward [--sizes Ti S B] [--patches 8 16 32] [--batches 1 8]
    python -m benchmarks.stem_candidates accuracy --data-dir DATA      # images of python -m tools.cifar10 DATA

Each call measures what is not in the results yet, and prints the whole table. ``forward`` wants quiet cores.

Errors are those of a patch embedding with random filters, the norm of the difference over the norm of what the patch
embedding gives without its bias: in float32, on independent pixels over the whole range and on noise of three standard
deviations, and in range under bfloat16 autocast, also over the same error of the patch embedding itself. ``forward``
is the median time of the whole model over that of the patchify model, the models alternating, without norms (as
folded), channels_last, float32. ``accuracy`` fine-tunes a small patchify ViT of CIFAR-10 after a transplant, on stems
made by the same rules for its patch of 4.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.load import machine
from benchmarks.stem_candidates_measure import errors, fine_tuning, forward
from convstem import StemSpec
from convstem.registry.catalog import models
from convstem.registry.complexity import stem_macs
from convstem.registry.stem_spec import default_stem

RESULTS = Path(__file__).parent / "results" / "stem_candidates"
PARTS = ("accuracy", "errors", "forward")
SIZES = {"Ti": 192, "S": 384, "B": 768, "L": 1024}
PATCHES = (8, 16, 32)
COLUMNS = ("size", "candidate", "channels", "default", "GMACs", "exact for", "float32 in range", "noise of 3 std",
           "bf16", "over patchify's", "forward, batch 1", "batch 8")  # fmt: skip


def depth_of(patch: int) -> int:
    """Return the number of stride-2 layers."""
    return patch.bit_length() - 1


def lean(patch: int, width: int) -> tuple[int, ...]:
    """Return the fewest channels with room for every pixel once, in the first layer with both signs."""
    pixels = [3 * 4**layer for layer in range(1, depth_of(patch) + 1)]
    return (24, *pixels[1:-1], pixels[-1] if patch < 32 else width)


def doubling(patch: int, width: int) -> tuple[int, ...]:
    """Return the paper's way to the trunk's width, each layer twice the one before, and no less than ``lean``."""
    depth = depth_of(patch)
    least = (12, *lean(patch, width)[1:])
    return tuple(max(width >> (depth - layer), least[layer - 1]) for layer in range(1, depth + 1))


def both_signs(patch: int, width: int) -> tuple[int, ...]:
    """Return the fewest channels with room for both signs of everything that the embedding takes from the pixels."""
    pixels = [6 * 4**layer for layer in range(1, depth_of(patch) + 1)]
    return (*pixels[:-1], min(pixels[-1], 2 * width))


RULES: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "lean": lean,
    "doubling": doubling,
    "every input": both_signs,
}


def candidates(patch: int, width: int) -> dict[str, StemSpec]:
    """Return the stems to compare: one for each rule, and the default where no rule gives it."""
    stems = {name: StemSpec(rule(patch, width), norm="none") for name, rule in RULES.items()}
    default = default_stem(patch, width)
    return stems if default in stems.values() else {**stems, "default": default}


def cells(size: str, patch: int, width: int, results: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the table's rows of one trunk size and patch; a dash is what was not measured."""
    row = replace(models()["vit_s16_convstem"], patch_size=patch, embed_dim=width, num_heads=width // 64)
    for name, stem in candidates(patch, width).items():
        found = results["errors"]["values"].get(f"{size}/{patch}/{name}", {})
        times = [results["forward"]["values"].get(f"{size}/{patch}/{batch}", {}) for batch in (1, 8)]
        form = {"scope": "{}", "factor": "{:.2f}"}
        yield [
            f"{size}/{patch}", name, ", ".join(map(str, stem.channels)),
            "yes" if stem == default_stem(patch, width) else "",
            f"{stem_macs(replace(row, stem_channels=stem.channels)) / 1e9:.2f}",
            *(form.get(key, "{:.1e}").format(found[key]) if found else "-"
              for key in ("scope", "range", "noise", "bf16", "factor")),
            *(f"{time[name] / time['patchify']:.3f}" if time else "-" for time in times),
        ]  # fmt: skip


def markdown(rows: Iterable[Iterable[str]]) -> str:
    """Return rows as a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def accuracy_table(runs: dict[str, list[float]]) -> str:
    """Return mean and sample standard deviation of the accuracies after fine-tuning, in per cent."""
    rows = []
    for name, values in runs.items():
        found = 100 * torch.tensor(values, dtype=torch.float64)
        spread = f"{found.std():.2f}" if len(found) > 1 else "-"
        rows.append([name, str(len(found)), f"{found.mean():.2f}", spread])
    return markdown([["start", "seeds", "accuracy %", "std"], ["---"] * 4, *rows])


def to_text(results: dict[str, Any]) -> str:
    """Return everything that was measured."""
    rows = [row for patch, size in product(PATCHES, SIZES) for row in cells(size, patch, SIZES[size], results)]
    parts = [f"{part}: {found['machine']}" for part, found in results.items() if "machine" in found]
    parts += ["Where two rules give one stem, the difference of its times is the noise of the machine."]
    parts += ["", markdown([COLUMNS, ["---"] * len(COLUMNS), *rows])]
    if (found := results["accuracy"])["values"]:
        heading = "Fine-tuning on CIFAR-10 after a transplant, patch 4, width 64:"
        parts += ["", heading, found.get("settings", "(not finished)"), "", accuracy_table(found["values"])]
    return "\n".join(parts) + "\n"


def measure(args: argparse.Namespace, found: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure what is asked for and not known yet; save after each."""
    values = found["values"]
    for patch, size in product(args.patches, args.sizes):
        stems = candidates(patch, SIZES[size])
        if args.part == "errors":
            for name, stem in stems.items():
                if (key := f"{size}/{patch}/{name}") not in values:
                    values[key] = errors(patch, SIZES[size], stem)
                    save()
        for batch in args.batches if args.part == "forward" else ():
            if (key := f"{size}/{patch}/{batch}") not in values:
                values[key] = forward(size, patch, stems, batch, args.repeats)
                save()
    if args.part == "accuracy":
        stems = {name: StemSpec(rule(4, 64), norm="none") for name, rule in RULES.items()}
        found["settings"] = fine_tuning(args.data_dir, args.cache, stems, values, save)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--patches", nargs="+", type=int, choices=PATCHES, default=list(PATCHES))
    parser.add_argument("--batches", nargs="+", type=int, choices=(1, 8), default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, help="image folder written by tools/cifar10.py")
    parser.add_argument("--cache", type=Path, help="folder for the source model and the images as tensors")
    args = parser.parse_args()
    if args.part == "accuracy" and not (args.data_dir and args.cache):
        parser.error("accuracy needs --data-dir and --cache")
    results = {part: read(part) for part in PARTS}
    found = results[args.part]
    found["machine"] = f"{machine('cpu')}; {torch.get_num_threads()} thread(s)"

    def save() -> None:
        file_of(args.part).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".txt").write_text(to_text(results), encoding="utf-8")

    RESULTS.mkdir(exist_ok=True)
    measure(args, found, save)
    save()
    print(to_text(results))


def file_of(part: str) -> Path:
    """Return where the values of a part are kept."""
    return RESULTS / f"{part}.json"


def read(part: str) -> dict[str, Any]:
    """Return the values of a part as far as they were measured."""
    return json.loads(file_of(part).read_text(encoding="utf-8")) if file_of(part).exists() else {"values": {}}


if __name__ == "__main__":
    main()
