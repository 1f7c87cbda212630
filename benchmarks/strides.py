"""What another stride costs: tokens, multiply-adds and time of a transplant at each stride.

    python -m benchmarks.strides [--model vit_small_patch16_224] [--threads 1] [--repeats 5]

The plain model comes first at image sizes 224 and 448. torch counts the multiply-adds, attention included. Times are
the minimum for a forward pass of one image, because other programs can only add time; the models take turns.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import convstem
from experiments.machine import cpu_name

ARMS = ((224, None), (224, 16), (224, 8), (224, 4), (448, None), (448, 16), (448, 32), (896, 64))
"""Image size and stride; None is the plain model."""


def arm(name: str, size: int, stride: int | None) -> Any:
    """Return the model for an image size and a stride."""
    patch = 16
    times = max((stride or patch) // patch, 1)
    plain = timm.create_model(name, img_size=size // times).eval()
    return plain if stride is None else convstem.transplant(plain, stride=stride).eval()


@torch.no_grad()
def gmacs(module: nn.Module, x: torch.Tensor) -> float:
    """Return the multiply-adds of a forward pass, in billions."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # cannot count fused CPU attention
        module(x)
    return counter.get_total_flops() / 2e9


@torch.no_grad()
def seconds(model: nn.Module, x: torch.Tensor) -> float:
    """Return the seconds of a forward pass."""
    begin = time.perf_counter()
    model(x)
    return time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = {key: arm(args.model, *key) for key in ARMS}
    images = {size: torch.rand(1, 3, size, size) for size, _ in ARMS}
    times: dict[tuple[int, int | None], list[float]] = {key: [] for key in ARMS}
    for _ in range(args.repeats):
        for key, model in models.items():
            times[key].append(seconds(model, images[key[0]]))
    print(f"{args.model}, one image, {args.threads} thread(s), {cpu_name()}")
    print(f"{'pixels':>6} {'stride':>7} {'tokens':>7} {'stem GMACs':>11} {'GMACs':>8} {'ms':>7} {'exact for':>16}")
    for (size, stride), model in models.items():
        x = images[size]
        stem, whole = gmacs(model.patch_embed, x), gmacs(model, x)
        scope = "-" if stride is None else model.transplant_report.scope
        step = "plain" if stride is None else stride
        took, tokens = min(times[size, stride]) * 1e3, model.patch_embed.num_patches
        print(f"{size:>6} {step:>7} {tokens:>7} {stem:>11.2f} {whole:>8.2f} {took:>7.0f} {scope:>16}")


if __name__ == "__main__":
    main()
