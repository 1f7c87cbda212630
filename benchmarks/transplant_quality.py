"""How well transplant preserves the function, and what it costs: one table, every number measured in this run.

    python benchmarks/transplant_quality.py [--quick] [--weights FILE.safetensors]   # --quick: a subset without bf16

The first part runs the real ViT-S/14 that recipes/dinov2_vit_small.py fetches, as patch 16 at 256 pixels; the second
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
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from subprocess import run
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision import transforms

from convstem import registry, transplant
from convstem.stem import init_stem
from convstem.transplant_model import normalised_range

RECIPES = Path(__file__).parents[1] / "recipes"

CALIBRATION = ("coffee", "rocket", "hubble_deep_field", "camera", "grass", "coins")
"""Photographs in scikit-image that a calibrated transplant measures."""

HELD_OUT = ("astronaut", "chelsea", "stereo_motorcycle", "china.jpg", "flower.jpg")
"""Photographs that everything is evaluated on; those with a suffix are scikit-learn's."""

SIZE = 224
"""Pixels of the images for patch embeddings."""

TRUNK_SIZE = 256
"""Pixels of the images for the real model."""

CROPS = 8
"""Crops of each photograph for the real model."""

CALIBRATION_CROPS = 16
"""Crops of each calibration photograph: 768 x 768 covariances need many patches."""

LOW, HIGH = (
    torch.tensor(end).view(3, 1, 1) for end in normalised_range(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, 3)
)
"""Black and white after normalisation."""

BEYOND = 8 / 255 / torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
"""8/255 of the pixel range, after normalisation."""

CONTROL = 0.1
"""Least error of a random stem; below it the other rows would prove nothing."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: str
    bar: float | None
    """Largest allowed value (``least``: smallest); None: for information."""
    natural: float
    random: float | None = None
    judged: tuple[str, ...] = ("natural", "random")
    """Columns the bar is about; the others are printed in brackets."""
    form: str = "{:.1e}"
    least: bool = False
    note: str = ""

    @property
    def within(self) -> bool:
        """Whether the judged values meet the bar."""
        values = [value for name in self.judged if (value := getattr(self, name)) is not None]
        return self.bar is None or all(value >= self.bar if self.least else value <= self.bar for value in values)

    def _cell(self, name: str) -> str:
        value = getattr(self, name)
        text = "-" if value is None else self.form.format(value)
        return text if value is None or self.bar is None or name in self.judged else f"({text})"

    def __str__(self) -> str:
        """Return the line."""
        bar = "-" if self.bar is None else (">= " if self.least else "<= ") + self.form.format(self.bar)
        within = "-" if self.bar is None else "yes" if self.within else "NO"
        return (
            f"{self.case:<70}| {bar:<12}| {self._cell('natural'):>18} | {self._cell('random'):>17} | {within:<6}"
            f"| {self.note}"
        ).rstrip(" |")


HEADER = f"{'case':<70}| {'bar':<12}| {'measured (natural)':>18} | {'measured (random)':>17} | within"


# --- Images


def photograph(name: str) -> Image.Image:
    """Return a sample photograph of scikit-image, or of scikit-learn if the name has a suffix."""
    if "." in name:
        from sklearn.datasets import load_sample_image  # only for this benchmark

        return Image.fromarray(load_sample_image(name))
    from skimage import data  # only for this benchmark

    pixels = getattr(data, name)()
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")


def crops(names: Sequence[str], count: int, size: int) -> Tensor:
    """Return normalised random crops [count per photograph, 3, size, size], always the same.

    Args:
        names: of photographs.
        count: crops of each.
        size: in pixels.
    """
    prepare = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.25, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )
    torch.manual_seed(0)
    return torch.stack([prepare(image) for image in map(photograph, names) for _ in range(count)])


def uniform(count: int, size: int) -> Tensor:
    """Return images [count, 3, size, size] of independent pixels over the whole pixel range."""
    torch.manual_seed(1)
    return LOW + (HIGH - LOW) * torch.rand(count, 3, size, size)


def outside(images: Tensor) -> Tensor:
    """Return images with every pixel moved 8/255 up or down, unclipped."""
    torch.manual_seed(2)
    return images + BEYOND * torch.randn_like(images).sign()


def corners(count: int, size: int) -> Tensor:
    """Return images whose pixels are all 8/255 below black or above white."""
    torch.manual_seed(3)
    return torch.where(torch.rand(count, 3, size, size) < 0.5, LOW - BEYOND, HIGH + BEYOND)


# --- Patch embeddings


def error(actual: Tensor, expected: Tensor, constant: Tensor | float = 0.0) -> float:
    """Return the norm of the difference over the norm of what is expected without a constant part."""
    return float((actual.double() - expected).norm() / (expected.double() - constant).norm())


def embedding(patch: int, width: int, filters: Tensor | None = None) -> nn.Module:
    """Return a model without blocks whose patch embedding has random or given filters.

    Args:
        patch: in pixels.
        width: of the embedding.
        filters: [width, 3, patch, patch]; default: random.
    """
    torch.manual_seed(4)
    model = VisionTransformer(SIZE, patch, embed_dim=width, depth=0, num_heads=1, num_classes=0).eval()
    model.pretrained_cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    with torch.no_grad():
        model.patch_embed.proj.weight.copy_(torch.randn(width, 3, patch, patch) / (3 * patch**2) ** 0.5)
        model.patch_embed.proj.bias.normal_()
        if filters is not None:
            model.patch_embed.proj.weight.copy_(filters)
    return model


def embedding_error(source: Any, twin: Any, images: Tensor) -> float:
    """Return the error of a transplanted patch embedding on images."""
    images = images.to(source.patch_embed.proj.weight.dtype)
    bias = source.patch_embed.proj.bias
    # One image at a time keeps the widest stems in float64 within a gigabyte.
    pairs = [(twin.patch_embed(image), source.patch_embed(image)) for image in images.split(1)]
    actual, expected = map(torch.cat, zip(*pairs, strict=True))
    return error(actual, expected, bias)


def exact_rows(case: str, patch: int, width: int, bar: float, beyond: bool, images: Sequence[Tensor]) -> list[Row]:
    """Return the rows of a default stem on random filters: float32, float64, and 8/255 outside the pixel range.

    Args:
        case: its name.
        patch, width: of the patch embedding.
        bar: for float32.
        beyond: whether the stem promises the same outside the pixel range.
        images: natural, random, natural outside and random outside.
    """
    source = embedding(patch, width)
    twin: Any = transplant(source)
    stem = "-".join(str(layer.width) for layer in twin.transplant_report.layers)
    name = f"{case} ({stem}), random filters"
    rows = [Row(f"{name}, float32", bar, *(embedding_error(source, twin, kind) for kind in images[:2]))]
    if beyond:
        title = f"{name}, +-8/255 outside"
        rows.append(Row(title, bar, *(embedding_error(source, twin, kind) for kind in images[2:])))
    source = source.double()
    twin = transplant(source)
    rows.append(Row(f"{name}, float64", 1e-12, *(embedding_error(source, twin, kind) for kind in images[:2])))
    return rows


def narrow_row(
    case: str, filters: Tensor | None, bar: float, images: Sequence[Tensor], calibration: Tensor | None = None
) -> Row:
    """Return the row of the paper's 18GF stem; its bar is about natural images, which low rank is good for.

    Args:
        case: its name.
        filters: [768, 3, 16, 16], or None for random ones.
        bar: for natural images.
        images: natural and random.
        calibration: images to measure, or None for the prior.
    """
    source = embedding(16, 768, filters)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the stem .* is too narrow", UserWarning)  # that is what is measured
        twin: Any = transplant(source, registry.find("vitc_18gf").stem, calibration)
    errors = [embedding_error(source, twin, kind) for kind in images[:2]]
    each = [embedding_error(source, twin, image) for image in images[0].split(1)]
    predicted = twin.transplant_report.predicted_relative_error
    note = f"{min(each):.1e} to {max(each):.1e} over photographs; predicted {predicted:.1e}"
    return Row(case, bar, *errors, judged=("natural",), form="{:.2e}", note=note)


# --- The real model end to end


def features(model: nn.Module, images: Tensor, precision: torch.dtype) -> Tensor:
    """Return final features [images, tokens, channels] in float32; bfloat16 means autocast.

    Args:
        model: the model.
        images: [images, 3, height, width].
        precision: float32 or bfloat16.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        return torch.cat([model.forward_features(part).float() for part in images.split(4)])


def centre(values: Tensor) -> Tensor:
    """Return the mean of final features: [1, tokens, channels], one for the class token, one for all others."""
    first, others = values[:, :1].mean((0, 1), keepdim=True), values[:, 1:].mean((0, 1), keepdim=True)
    return torch.cat([first, others.expand(-1, values.shape[1] - 1, -1)], 1)


def compare(actual: Tensor, expected: Tensor, head: Tensor | None = None) -> float:
    """Return the error of final features, or of their logits.

    Args:
        actual, expected: final features.
        head: [channels, classes] for logits; default: features.
    """
    mean = centre(expected)
    pair = [values - mean if head is None else (values - mean) @ head for values in (actual, expected)]
    return error(*pair)


def top1(actual: Tensor, expected: Tensor, head: Tensor) -> float:
    """Return the share in per cent of tokens whose largest logit is the same; arguments as above."""
    answers = [((values - centre(expected)) @ head).argmax(-1) for values in (actual, expected)]
    return 100 * float((answers[0] == answers[1]).float().mean())


def interval(source: Tensor, twin: Tensor, expected: Tensor) -> str:
    """Return the 95 % bootstrap interval over images of one error over another.

    Args:
        source: final features in bfloat16 of the original.
        twin: those of the transplant.
        expected: those of the original in float32.
    """
    theirs, ours = ((actual - expected).flatten(1).square().sum(1) for actual in (source, twin))
    torch.manual_seed(7)
    drawn = torch.randint(len(ours), (2000, len(ours)))
    ratios = (ours[drawn].sum(1) / theirs[drawn].sum(1)).sqrt()
    return f"95 % interval over images {ratios.quantile(0.025):.3f} to {ratios.quantile(0.975):.3f}"


def control_rows(source: Any, twin: Any, kinds: Sequence[Tensor]) -> list[Row]:
    """Return the negative control: the transplant's architecture with a random stem is another function."""
    stem, kept = twin.patch_embed, {name: tensor.clone() for name, tensor in twin.patch_embed.state_dict().items()}
    torch.manual_seed(5)
    init_stem(stem)
    pairs = [[features(model, images[:4], torch.float32) for model in (twin, source)] for images in kinds]
    stem.load_state_dict(kept)
    title = "negative control: random stem, final features"
    return [Row(title, CONTROL, *(compare(*pair) for pair in pairs), least=True)]


def trunk_rows(source: Any, twin: Any, kinds: Sequence[Tensor], bf16: bool) -> list[Row]:
    """Return the rows of the real model.

    Args:
        source, twin: the original and its transplant with the default stem.
        kinds: natural and random images.
        bf16: also in bfloat16.
    """
    torch.manual_seed(6)
    head = torch.randn(source.num_features, 1000) / source.num_features**0.5
    expected = [features(source, images, torch.float32) for images in kinds]
    actual = [features(twin, images, torch.float32) for images in kinds]
    rows = [
        Row("embedding, float32", 1e-5, *(embedding_error(source, twin, images) for images in kinds)),
        Row("final features, float32", 1e-5, *map(compare, actual, expected)),
        Row("logits, float32", None, *(compare(*pair, head) for pair in zip(actual, expected, strict=True))),
        top1_row("float32", actual, expected, head),
    ]
    if bf16:
        runs = [[features(model, images, torch.bfloat16) for images in kinds] for model in (source, twin)]
        rows += ratio_rows("final features", *runs, expected, None, 1.10)
        rows += ratio_rows("logits", *runs, expected, head, None)
        rows += [
            top1_row(f"{name} in bf16", run, expected, head)
            for name, run in zip(("original", "transplant"), runs, strict=True)
        ]
    return rows


def top1_row(name: str, actual: Sequence[Tensor], expected: Sequence[Tensor], head: Tensor) -> Row:
    """Return the row of how many answers are the original's in float32."""
    shares = [top1(*pair, head) for pair in zip(actual, expected, strict=True)]
    return Row(f"same largest logit as in float32 (%), {name}", None, *shares, form="{:.2f}")


def ratio_rows(
    name: str,
    source: Sequence[Tensor],
    twin: Sequence[Tensor],
    expected: Sequence[Tensor],
    head: Tensor | None,
    bar: float | None,
) -> list[Row]:
    """Return both errors in bfloat16 and their ratio; the bar is about natural images.

    Args:
        name: of what is compared.
        source, twin: final features in bfloat16 on each kind of image.
        expected: the original's in float32.
        head: for logits.
        bar: for the ratio.
    """
    theirs, ours = ([compare(*pair, head) for pair in zip(run, expected, strict=True)] for run in (source, twin))
    ratio = [mine / base for mine, base in zip(ours, theirs, strict=True)]
    note = interval(source[0], twin[0], expected[0]) if bar else ""
    return [
        Row(f"{name}, original in bf16 against its float32", None, *theirs, form="{:.2e}"),
        Row(f"{name}, transplant in bf16 against the original's float32", None, *ours, form="{:.2e}"),
        Row(f"{name}, ratio of the two", bar, *ratio, judged=("natural",), form="{:.3f}", note=note),
    ]


# --- Cost


def probe(name: str) -> dict[str, float]:
    """Return seconds and extra peak memory (GiB) of one transplant; for a process that does nothing else.

    Args:
        name: timm architecture, with random weights.
    """
    model = timm.create_model(name).eval()
    before = resident("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    transplant(model)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    copy = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"seconds": seconds, "cpu": cpu, "gib": resident("VmHWM") - before, "copy": copy / 2**30}


def resident(field: str) -> float:
    """Return GiB of memory in use (``VmRSS``) or its peak (``VmHWM``); Linux only.

    ``resource.getrusage`` will not do: a child's ``ru_maxrss`` starts at the memory of the process that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


def cost_rows(case: str, name: str, seconds: float) -> list[Row]:
    """Return time and memory of a transplant: median time and largest memory of REPEATS processes of their own.

    Args:
        case: its name.
        name: timm architecture.
        seconds: bar.
    """
    command = [sys.executable, __file__, "--probe", name]
    outputs = [run(command, capture_output=True, text=True, check=True).stdout for _ in range(REPEATS)]
    costs = {key: [json.loads(output)[key] for output in outputs] for key in ("seconds", "cpu", "gib", "copy")}
    walls, busy = (", ".join(f"{value:.1f}" for value in costs[key]) for key in ("seconds", "cpu"))
    timing, copied = f"runs: {walls}; processor time: {busy}", f"of which the returned model {costs['copy'][0]:.2f}"
    return [
        Row(f"{case}: wall time of transplant (s)", seconds, median(costs["seconds"]), form="{:.1f}", note=timing),
        Row(f"{case}: extra peak memory of transplant (GiB)", 1.5, max(costs["gib"]), form="{:.2f}", note=copied),
    ]


# --- The table

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
REPEATS = 3
"""Processes for each cost: a machine that does other work as well stalls one now and then."""

QUICK = ("B/16", "S/8", "Ti/16", "S/32")

COSTS = (("B/16", "vit_base_patch16_224", 5.0), ("L/16", "vit_large_patch16_224", 10.0))


class Table:
    """Prints rows as they come and remembers whether all bars were met."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def section(self, title: str) -> None:
        """Start a part of the table."""
        print(f"\n{title}\n\n{HEADER}\n{'-' * len(HEADER)}", flush=True)

    def add(self, rows: Sequence[Row]) -> None:
        """Print rows."""
        for row in rows:
            print(row, flush=True)
            if not row.within:
                self.missed.append(row.case)


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
    sys.path.insert(0, str(RECIPES))  # recipes are scripts, not a package
    import dinov2_vit_small as recipe

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

    table.section("Cost: whole models with random weights, each in a process of its own")
    for row in COSTS[: 1 if quick else None]:
        table.add(cost_rows(*row))


def main() -> int:
    """Print the table; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a subset, in under a minute")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="what recipes/dinov2_vit_small.py wrote")
    parser.add_argument("--probe", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        print(json.dumps(probe(args.probe)))
        return 0
    start = time.perf_counter()
    table = Table()
    print(f"python benchmarks/transplant_quality.py{' --quick' if args.quick else ''}\n{circumstances()}", flush=True)
    measure(table, real_model(args.weights), args.quick)
    print(f"\n{'missed: ' + '; '.join(table.missed) if table.missed else 'every bar is met'}")
    print(f"{time.perf_counter() - start:.0f} s in all, {time.process_time():.0f} s of processor time")
    return int(bool(table.missed))


if __name__ == "__main__":
    sys.exit(main())
