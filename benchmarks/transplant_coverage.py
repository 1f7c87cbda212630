"""Does ``transplant`` preserve the function of every timm architecture in registry/timm_trunks.json?

Each architecture is built with 4 x 4 patches and random weights, perturbed so that no norm, scale or bias is at its
initial identity, and is transplanted with the default stem. The patch embeddings and final outputs of both models are
compared in eval mode in float32, on images within the normalised [0, 1] box: half uniform noise, half smooth. If
patches of 14 pixels become 16, each patch of the images is resized by itself for the transplant. The error is the
root-mean-square difference over the root mean square of the original's values. For ``batch``, the mean over the images
is subtracted from the original's values first, which removes what does not depend on the image. ``control`` is the
output error with random stem parameters: it shows that the output depends on the stem.

    python -m benchmarks.transplant_coverage [--only PATTERN] [--json FILE]   # the same call again continues FILE

Architectures above 120 million parameters are built with two blocks. If the entrypoint refuses another depth they are
built in full, or, above 400 million parameters, only their patch embedding is built and compared.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import platform
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from convstem import transplant
from convstem.stem.embed import ConvStemEmbed
from convstem.transplanting.grid import enlarge_patches

TRUNKS = Path(__file__).parents[1] / "registry" / "timm_trunks.json"

GRID = 4
"""Patches along each axis; even, because Qwen3's spatial merge needs it."""

BATCH = 4

LARGE = 120e6
"""Parameters above which a model is built with DEPTH blocks."""

HUGE = 400e6
"""Parameters above which a model without a ``depth`` argument stays on the meta device, except its patch embedding."""

DEPTH = 2

TOLERANCES = (1e-5, 1e-4)

CONTROL = 1e-2
"""Minimum output error of a random stem; below it a comparison would prove nothing."""


@dataclass
class Row:
    """Measurements of one architecture; None: not measured."""

    architecture: str
    kind: str = ""
    """Class of the model."""
    patch: int = 0
    embed_dim: int = 0
    stem: tuple[int, ...] = ()
    """Channels of the stem before the 1x1."""
    built: str = ""
    """``full``, ``depth=2`` (two blocks) or ``embed`` (only the patch embedding)."""
    scope: str = ""
    """The inputs for which it is exact, as in ``transplant_report``."""
    embedding: float | None = None
    output: float | None = None
    output_batch: float | None = None
    control: float | None = None
    seconds: float | None = None
    """Wall time of ``transplant``."""
    failure: str = ""

    def preserved(self, tolerance: float) -> bool:
        """Return whether all measured errors are within a relative tolerance, and the control is above ``CONTROL``."""
        if self.failure or self.embedding is None or self.control is None:
            return False
        errors = [self.embedding] if self.output is None else [self.embedding, self.output]
        return all(error <= tolerance for error in errors) and self.control > CONTROL

    def __str__(self) -> str:
        """Return the row of the table."""
        stem = "-".join(map(str, self.stem))
        errors = (self.embedding, self.output, self.output_batch, self.control)
        figures = "".join(f"{'-':>10}" if error is None else f"{error:>10.1e}" for error in errors)
        seconds = "-" if self.seconds is None else f"{self.seconds:.1f}"
        return (
            f"{self.architecture:<52}{self.kind:<27}{self.patch:>5}{self.embed_dim:>6}  {stem:<24}{self.built:<9}"
            f"{self.scope:<17}{figures}{seconds:>8}  {self.failure}"
        ).rstrip()


HEADER = (
    f"{'architecture':<52}{'class':<27}{'patch':>5}{'dim':>6}  {'stem':<24}{'built':<9}{'exact for':<17}"
    f"{'embedding':>10}{'output':>10}{'batch':>10}{'control':>10}{'seconds':>8}"
)


def embedding_of(model: nn.Module) -> Any:
    """Return the model's only patch embedding: a ``PatchEmbed``, or the stem that replaced it."""
    (found,) = (module for module in model.modules() if type(module) in (PatchEmbed, ConvStemEmbed))
    return found


def build(name: str) -> tuple[nn.Module, str]:
    """Return a model in eval mode with perturbed random weights, and how it was built (see ``Row.built``).

    Args:
        name: timm architecture.
    """
    with torch.device("meta"):
        full = timm.create_model(name)
    size = GRID * embedding_of(full).patch_size[0]
    parameters = sum(parameter.numel() for parameter in full.parameters())
    torch.manual_seed(0)
    if parameters > LARGE:
        # MLP-Mixer's entrypoints fix their depth; those of Sapiens2 fix the heads of every block.
        with contextlib.suppress(TypeError, AssertionError):
            return perturb(timm.create_model(name, img_size=size, depth=DEPTH)), f"depth={DEPTH}"
    if parameters <= HUGE:
        return perturb(timm.create_model(name, img_size=size)), "full"
    with torch.device("meta"):
        shell = timm.create_model(name, img_size=size)
    redraw(embedding_of(shell).to_empty(device="cpu"))
    perturb(embedding_of(shell))
    return shell.eval(), "embed"


@torch.no_grad()
def perturb(model: nn.Module) -> nn.Module:
    """Add noise to every parameter, more to vectors (biases, scales, norms); return the model in eval mode."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.2 if parameter.ndim < 2 else 0.02)
    return model.eval()


def make_images(model: Any) -> Tensor:
    """Return normalised images [BATCH, channels, height, width]: uniform noise, then smooth ones.

    Args:
        model: a timm model; its ``pretrained_cfg`` has the mean and standard deviation.
    """
    patch = embedding_of(model).patch_size[0]
    noise = torch.rand(BATCH // 2, 3, GRID * patch, GRID * patch)
    coarse = torch.rand(BATCH - BATCH // 2, 3, 3, 3)
    smooth = functional.interpolate(coarse, size=noise.shape[-2:], mode="bilinear", align_corners=True)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (torch.cat([noise, smooth]) - mean) / std


def relative_error(value: Tensor, reference: Tensor, centred: bool = False) -> float:
    """Return the root-mean-square difference over the root mean square of the reference.

    Args:
        value, reference: [batch, ...].
        centred: subtract the mean over the batch from the reference first.
    """
    scale = reference - reference.mean(0) if centred else reference
    return float((value - reference).double().norm() / scale.double().norm())


def redraw(embedding: nn.Module) -> None:
    """Set the parameters of a patch embedding or stem to torch's random defaults."""
    for module in embedding.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


@torch.inference_mode()
def compare(model: nn.Module, twin: Any, row: Row) -> None:
    """Fill in the errors of a transplanted model; its stem is random afterwards.

    Args:
        model: the original.
        twin: the transplanted model.
        row: the row to fill in.
    """
    images = make_images(model)
    resized_from = twin.transplant_report.resized_from
    theirs = enlarge_patches(images, resized_from) if resized_from else images
    old, stem = embedding_of(model), embedding_of(twin)
    row.embedding = relative_error(stem(theirs), old(images))
    if row.built == "embed":
        model, twin = old, stem  # the rest is on the meta device
    expected, output = model(images), twin(theirs)
    if row.built != "embed":
        row.output = relative_error(output, expected)
        row.output_batch = relative_error(output, expected, centred=True)
    redraw(stem)
    row.control = relative_error(twin(theirs), expected)


def measure(name: str) -> Row:
    """Return the measurements of one architecture; an exception becomes the row's ``failure``."""
    row = Row(name)
    try:
        model, row.built = build(name)
        old = embedding_of(model)
        row.kind, row.patch, row.embed_dim = type(model).__name__, old.patch_size[0], old.proj.out_channels
        start = time.perf_counter()
        twin: Any = transplant(model)
        row.seconds = time.perf_counter() - start
        row.scope = twin.transplant_report.scope
        row.stem = tuple(layer.width for layer in twin.transplant_report.layers)
        compare(model, twin, row)
    except Exception as error:  # the other architectures are still worth measuring
        row.failure = f"{type(error).__name__}: {error}"
    return row


def summary(rows: list[Row], seconds: float) -> dict[str, Any]:
    """Return the counts, errors, machine and versions of a run as plain JSON values."""
    errors = {
        key: [value for row in rows if (value := getattr(row, key)) is not None]
        for key in ("embedding", "output", "control")
    }
    return {
        "architectures": len(rows),
        "failures": sum(bool(row.failure) for row in rows),
        "exact for": dict(Counter(row.scope or "nothing" for row in rows).most_common()),
        "built": dict(Counter(row.built or "not built" for row in rows).most_common()),
        "classes": dict(Counter(row.kind or "not built" for row in rows).most_common()),
        "preserved": {f"{tolerance:g}": sum(row.preserved(tolerance) for row in rows) for tolerance in TOLERANCES},
        "largest_embedding_error": max(errors["embedding"], default=None),
        "largest_output_error": max(errors["output"], default=None),
        "smallest_control": min(errors["control"], default=None),
        "seconds": round(seconds),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("convstem", "timm", "torch", "torchvision")},
    }


def print_summary(totals: dict[str, Any]) -> None:
    """Print the result of ``summary``."""
    count = totals["architectures"]
    print("\nclass                        architectures")
    for kind, number in totals["classes"].items():
        print(f"{kind:<29}{number:>13}")
    built = ", ".join(f"{number} {kind}" for kind, number in totals["built"].items())
    exact = ", ".join(f"{number} {scope}" for scope, number in totals["exact for"].items())
    print(f"\n{count} architectures, {totals['failures']} failures; exact for: {exact}; built: {built}")
    for tolerance, number in totals["preserved"].items():
        print(f"embedding and output preserved to {tolerance}: {number} of {count} ({number / count:.1%})")
    for key in ("largest_embedding_error", "largest_output_error", "smallest_control"):
        if totals[key] is not None:
            print(f"{key.replace('_', ' ')}: {totals[key]:.1e}")
    packages = ", ".join(f"{name} {number}" for name, number in totals["versions"].items())
    print(f"float32, {totals['machine']}; {packages}; {totals['seconds']} s in all")


def read(file: Path) -> tuple[list[Row], float]:
    """Return the rows from a file of ``write``, and the seconds they took."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return [Row(**row) for row in content["rows"]], content["summary"]["seconds"]


def write(file: Path, rows: list[Row], seconds: float) -> None:
    """Write rows and their summary."""
    text = json.dumps({"summary": summary(rows, seconds), "rows": [asdict(row) for row in rows]}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Print the table and the summary; return 1 if an architecture fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="PATTERN", default="*", help="shell pattern of architecture names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and summary here")
    args = parser.parse_args()
    names = fnmatch.filter(json.loads(TRUNKS.read_text(encoding="utf-8")), args.only)
    if not names:
        parser.error(f"no architecture in {TRUNKS.name} matches {args.only!r}")
    print(HEADER)
    rows, before = read(args.json) if args.json and args.json.exists() else ([], 0.0)
    done, start = {row.architecture for row in rows}, time.perf_counter() - before
    for row in rows:
        print(row)
    for name in tqdm([name for name in names if name not in done], file=sys.stderr, disable=None):  # None: if a tty
        rows.append(measure(name))
        tqdm.write(str(rows[-1]), file=sys.stdout)
        sys.stdout.flush()
        if args.json:
            write(args.json, rows, time.perf_counter() - start)
    print_summary(summary(rows, time.perf_counter() - start))
    return int(any(row.failure or not row.preserved(max(TOLERANCES)) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
