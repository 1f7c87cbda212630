"""Errors that benchmarks/transplant_quality.py measures, as rows: of patch embeddings, and of a real model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.transplant_quality_images import SIZE
from benchmarks.transplant_quality_table import Row
from convstem import transplant
from convstem.registry import catalog
from convstem.stem.init import init_stem

CONTROL = 0.1
"""Least error of a random stem; below it the other rows would prove nothing."""

# --- Patch embeddings


def error(actual: Tensor, expected: Tensor, constant: Tensor | float = 0.0) -> float:
    """Return the norm of the difference over the norm of what is expected without a constant part."""
    return float((actual.double() - expected).norm() / (expected.double() - constant).norm())


def embedding(patch: int, width: int, filters: Tensor | None = None, in_chans: int = 3) -> nn.Module:
    """Return a model without blocks whose patch embedding has random or given filters.

    Args:
        patch: in pixels.
        width: of the embedding.
        filters: [width, in_chans, patch, patch]; default: random.
        in_chans: input channels; mean and std of the model tell of three.
    """
    torch.manual_seed(4)
    model = VisionTransformer(SIZE, patch, in_chans, 0, embed_dim=width, depth=0, num_heads=1).eval()
    model.pretrained_cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    with torch.no_grad():
        shape = model.patch_embed.proj.weight.shape
        model.patch_embed.proj.weight.copy_(torch.randn(shape) / shape[1:].numel() ** 0.5)
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


def channel_row(case: str, patch: int, width: int, in_chans: int) -> Row:
    """Return the row of a default stem for other input channels: pixels from -2 to 2, noise of 3 standard deviations.

    Args:
        case: its name.
        patch, width: of the patch embedding.
        in_chans: input channels.
    """
    source = embedding(patch, width, in_chans=in_chans)
    twin: Any = transplant(source)
    stem = "-".join(str(layer.width) for layer in twin.transplant_report.layers)
    generator = torch.Generator().manual_seed(6)
    pixels = 4 * torch.rand(1, in_chans, SIZE, SIZE, generator=generator) - 2
    noise = 3 * torch.randn(1, in_chans, SIZE, SIZE, generator=generator)
    errors = (embedding_error(source, twin, kind) for kind in (pixels, noise))
    return Row(f"{case} ({stem}), {in_chans} channels, random filters", 2e-6, *errors)


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
        twin: Any = transplant(source, catalog.find("vitc_18gf").stem, calibration)
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
    init_stem(stem, "none")
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
