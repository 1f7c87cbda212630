"""What benchmarks/stem_candidates.py measures of a stem: errors, forward time, accuracy after fine-tuning."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.transplant_quality_cases import embedding, embedding_error, error
from benchmarks.transplant_quality_images import SIZE, uniform
from convstem import StemSpec, transplant
from convstem.transplanting.surgery import swap_stem
from experiments.cifar10.data import Split, load_split
from experiments.stem_norms import EPOCHS, OPTIMISERS, RATES, STEPS, TEST_IMAGES
from experiments.transplant_cifar10 import get_source
from experiments.transplant_cifar10_experiments import accuracy, predict, train

TRUNKS = {
    "Ti": "vit_tiny_patch16_224",
    "S": "vit_small_patch16_224",
    "B": "vit_base_patch16_224",
    "L": "vit_large_patch16_224",
}
SEEDS = (0, 1, 2)
HALF_SIZE = 96
"""Pixels of the images in bfloat16, which many CPUs emulate."""


@torch.no_grad()
def errors(patch: int, width: int, stem: StemSpec) -> dict[str, Any]:
    """Return the errors of a transplanted patch embedding, and for which inputs it is exact."""
    source: Any = embedding(patch, width)
    source.patch_embed.strict_img_size = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the stem .* is too narrow", UserWarning)  # the error is in the table
        twin: Any = transplant(source, stem)
    pixels, noise = uniform(2, SIZE), 3 * torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(6))
    crop = pixels[..., :HALF_SIZE, :HALF_SIZE]
    half, theirs = (in_bfloat16(model, crop, source) for model in (twin, source))
    return {
        "scope": twin.transplant_report.scope if twin.transplant_report.exact else "none",
        "range": embedding_error(source, twin, pixels),
        "noise": embedding_error(source, twin, noise),
        "bf16": half,
        "factor": half / theirs,
    }


def in_bfloat16(model: Any, images: Tensor, source: Any) -> float:
    """Return the error of a patch embedding under bfloat16 autocast against the source in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        actual = model.patch_embed(images)
    return error(actual, source.patch_embed(images), source.patch_embed.proj.bias)


@torch.inference_mode()
def forward(size: str, patch: int, stems: Mapping[str, StemSpec], batch: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of a whole model's forward pass, by candidate and for ``patchify``.

    Args:
        size: of the trunk.
        patch: in pixels.
        stems: candidates.
        batch: images of 224 pixels.
        repeats: rounds, in each of which all models take their turn; one more warms up.
    """
    torch.manual_seed(0)
    plain = timm.create_model(TRUNKS[size], patch_size=patch).eval()
    peers: dict[str, nn.Module] = {"patchify": plain}
    for name, stem in stems.items():
        peers[name] = copy.deepcopy(plain)
        swap_stem(peers[name], stem, transplanted=False)
    images = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for model in peers.values():
        model.eval().to(memory_format=torch.channels_last)
    for repeat in range(repeats + 1):
        for name, model in peers.items():
            start = time.perf_counter()
            model(images)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def fine_tuning(
    folder: Path, cache: Path, stems: Mapping[str, StemSpec], found: dict[str, list[float]], save: Callable[[], None]
) -> str:
    """Fine-tune the source and its transplants with AdamW; return the settings as text.

    Args:
        folder: images of CIFAR-10.
        cache: has or gets the source model and the images as tensors.
        stems: candidates.
        found: accuracies by start and seed; what is missing is added.
        save: called after each run.
    """
    cache.mkdir(parents=True, exist_ok=True)
    data, test = (load_split(folder / name, cache / f"{name}.pt", 0) for name in ("train", "validation"))
    source = get_source(cache / "source.pt", EPOCHS, data)
    every = len(test.labels) // TEST_IMAGES
    test = Split(test.images[::every], test.labels[::every])
    (name, decay), rate, steps = OPTIMISERS["AdamW"], RATES["AdamW", 128], STEPS[128]
    starts: dict[str, Callable[[], nn.Module]] = {"patchify": partial(copy.deepcopy, source)}
    starts |= {f"{label} {list(stem.channels)}": partial(transplant, source, stem) for label, stem in stems.items()}
    for seed in SEEDS:
        for label, start in starts.items():
            scores = found.setdefault(label, [])
            if len(scores) <= seed:
                model = start()
                train(model, data, 1000 + seed, steps, (name, rate, decay))
                scores.append(accuracy(predict(model, test.images), test.labels))
                save()
    score = 100 * accuracy(predict(source, test.images), test.labels)
    return f"source of {EPOCHS} epoch: {score:.2f} %; AdamW {rate:g}, {steps} steps of 128; {TEST_IMAGES} test images"
