"""A patch embedding in four spellings that compute the same, and the conv stem that replaces it, timed side by side.

A p x p convolution with stride p cuts the image into patches and multiplies each by one matrix. So do ``F.unfold`` or a
reshape, followed by a linear layer. Which is fastest depends on the kernels that a machine picks.

    python -m benchmarks.patch_embedding [--device cuda] [--dtype bfloat16] [--batches 1 32] [--threads 2]
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.benchmark import Timer

NAMES = ("vit_base_patch16_224", "vit_b16_convstem")
PROCESSOR = "model name"


def as_convolution(images: Tensor, proj: nn.Conv2d) -> Tensor:
    """Return the tokens [batch, patches, embed_dim] of images [batch, channels, height, width]."""
    return proj(images).flatten(2).transpose(1, 2)


def as_channels_last(images: Tensor, proj: nn.Conv2d) -> Tensor:
    """Return the same through a convolution in channels-last memory."""
    return as_convolution(images.to(memory_format=torch.channels_last), proj)


def as_unfold(images: Tensor, proj: nn.Conv2d) -> Tensor:
    """Return the same through ``F.unfold`` and a linear layer."""
    size = proj.kernel_size[0]
    patches = functional.unfold(images, size, stride=size).transpose(1, 2)
    return functional.linear(patches, proj.weight.flatten(1), proj.bias)


def as_reshape(images: Tensor, proj: nn.Conv2d) -> Tensor:
    """Return the same through a reshape and a linear layer."""
    batch, channels, height, width = images.shape
    size = proj.kernel_size[0]
    grid = images.reshape(batch, channels, height // size, size, width // size, size)
    patches = grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)
    return functional.linear(patches, proj.weight.flatten(1), proj.bias)


SPELLINGS: dict[str, Callable[[Tensor, nn.Conv2d], Tensor]] = {
    "Conv2d": as_convolution,
    "Conv2d, channels last": as_channels_last,
    "unfold + Linear": as_unfold,
    "reshape + Linear": as_reshape,
}


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=2).median


@torch.inference_mode()
def rows(batch: int, device: str, dtype: torch.dtype) -> list[tuple[str, float, float]]:
    """Return (what, milliseconds, largest difference to Conv2d relative to the largest token) of one batch size."""
    patchify, ours = (timm.create_model(name).eval().to(device, dtype) for name in NAMES)
    images = torch.randn(batch, 3, 224, 224, device=device, dtype=dtype)
    proj = patchify.patch_embed.proj
    tokens = as_convolution(images, proj)
    found = []
    for what, spelling in SPELLINGS.items():
        gap = (spelling(images, proj) - tokens).abs().max() / tokens.abs().max()
        found.append((what, milliseconds(partial(spelling, images, proj)), float(gap)))
    found.append(("conv stem", milliseconds(lambda: ours.patch_embed(images)), float("nan")))
    return found


def machine(device: str) -> str:
    """Return what the figures were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        return next((line.partition(":")[2].strip() for line in info if line.startswith(PROCESSOR)), platform.machine())


def main() -> None:
    """Print a table for every batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm"))
    print(f"{machine(given.device)}, {given.threads} threads, {versions}, {given.dtype}")
    print("ViT-B/16 at 224 pixels; median milliseconds, largest difference to Conv2d")
    for batch in given.batches:
        print(f"\nbatch {batch}")
        for what, time, gap in rows(batch, given.device, getattr(torch, given.dtype)):
            print(f"  {what:22} {time:9.2f}  {'' if gap != gap else f'{gap:.1e}'}".rstrip())


if __name__ == "__main__":
    main()
