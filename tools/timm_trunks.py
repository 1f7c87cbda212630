"""Write registry/timm_trunks.json: the timm architectures whose patch embedding can be transplanted, with their sizes.

    python -m tools.timm_trunks [--check] [--full]

These have exactly one ``PatchEmbed`` (not a subclass), with a convolution of kernel = stride = 8, 14, 16 or 32 in both
directions. Those of patch 14 get a stem of patch 16, and images with as many patches: ``patch_size`` and ``img_size``
are those of the result, ``resized_from`` is timm's patch size. Each architecture is built and run on the meta device,
so no weights are initialised or loaded and nothing is computed. Parameters and multiply-adds exclude the patch
embedding, because a conv stem replaces it. ``--check`` changes nothing and fails if the file is stale.

Only architectures in modules that can reach ``PatchEmbed`` are built: those that import it, or import a class from a
timm model file that does (DeiT uses ``VisionTransformer``). ``--full`` builds every architecture instead, in two to
three times the time, to show that this rule misses nothing.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convstem.registry.tables import RESIZED, resized_input
from tools.generated import write_or_check

TARGET = Path(__file__).parents[1] / "registry" / "timm_trunks.json"

PATCHES = (8, 14, 16, 32)
"""Patch sizes of plain ViTs; patch 4 is for hierarchical models."""


def candidates(full: bool) -> list[str]:
    """Return timm's own architecture names, sorted, without deprecated names and those of other packages.

    Args:
        full: include modules that cannot reach ``PatchEmbed``.
    """
    homes = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    usable = {home for home in set(homes.values()) if home.startswith("timm.models.") and (full or reaches(home))}
    return sorted(name for name, home in homes.items() if home in usable)


def reaches(home: str) -> bool:
    """Return whether a module imports ``PatchEmbed``, or a class of a timm model file that imports it."""
    classes = [value for value in vars(import_module(home)).values() if inspect.isclass(value)]
    files = {value.__module__ for value in classes if value.__module__.startswith("timm.models.")}
    return any(PatchEmbed in vars(import_module(file)).values() for file in {home, *files})


def is_trunk(model: nn.Module) -> bool:
    """Return whether a model has one ``PatchEmbed``, with a square kernel in PATCHES that equals the stride."""
    embeddings = [module for module in model.modules() if type(module) is PatchEmbed]
    if len(embeddings) != 1 or not isinstance(embeddings[0].proj, nn.Conv2d):
        return False
    projection = embeddings[0].proj
    squares = [(patch, patch) for patch in PATCHES]
    return projection.kernel_size == projection.stride and projection.kernel_size in squares


def build(name: str, **kwargs: Any) -> nn.Module:
    """Return a timm architecture on the meta device."""
    with torch.device("meta"):  # not every entrypoint takes device=
        return timm.create_model(name, **kwargs)


def sizes(name: str, model: nn.Module) -> dict[str, Any]:
    """Return a trunk's row: sizes at its defaults, counted without the patch embedding, and the cost of one class."""
    path, embedding = next((path, module) for path, module in model.named_modules() if type(module) is PatchEmbed)
    blocks = model.get_submodule(path.rpartition(".")[0]).blocks
    input_size, patch = model.pretrained_cfg["input_size"], embedding.patch_size[0]
    resized = {"resized_from": patch} if patch % 8 else {}
    _, height, width = resized_input(input_size, patch, RESIZED) if resized else input_size
    projection, bias = embedding.proj.weight.numel(), embedding.proj.bias
    return {
        "patch_size": RESIZED if resized else patch,
        **resized,
        "embed_dim": embedding.proj.out_channels,
        "depth": len(blocks),
        "num_heads": next((m.num_heads for m in blocks[0].modules() if hasattr(m, "num_heads")), 0),
        "img_size": height if height == width else [height, width],
        "num_classes": model.num_classes,
        "trunk_params": num_params(model) - projection - (0 if bias is None else bias.numel()),
        "trunk_macs": macs(model, input_size) - projection * embedding.num_patches,
        **class_cost(name),
    }


def num_params(model: nn.Module) -> int:
    """Return the number of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, input_size: Sequence[int]) -> int:
    """Return the multiply-adds of one image: convolutions, linear layers and attention products.

    Args:
        model: on the meta device; it is set to eval mode and without gradients.
        input_size: channels, height and width of the image, in pixels.
    """
    model.eval().requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *input_size, device="meta"))
    return counter.get_total_flops() // 2


def class_cost(name: str) -> dict[str, int]:
    """Return the cost of one more class in all classifiers: parameters with biases, multiply-adds without."""
    two, one = (list(build(name, num_classes=classes).parameters()) for classes in (2, 1))
    grown = [(a.ndim, a.numel() - b.numel()) for a, b in zip(two, one, strict=True)]
    return {
        "class_params": sum(number for _, number in grown),
        "class_macs": sum(number for ndim, number in grown if ndim > 1),
    }


def sweep(names: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Build architectures on the meta device; return the trunks' rows, and the errors of failed builds."""
    trunks, failures = {}, {}
    progress = sys.stderr.isatty()
    for index, name in enumerate(names, 1):
        if progress:
            print(f"\r{index}/{len(names)} {name:<60}", end="", file=sys.stderr)
        try:
            model = build(name)
        except Exception as error:  # one of 1300 entrypoints may fail in any way and must not hide the others
            failures[name] = f"{type(error).__name__}: {error}"
            continue
        if is_trunk(model):
            trunks[name] = sizes(name, model)
    if progress:
        print(file=sys.stderr)
    return trunks, failures


def main() -> int:
    """Write the file, or compare it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the file is stale")
    parser.add_argument("--full", action="store_true", help="build every timm architecture")
    args = parser.parse_args()
    names = candidates(args.full)
    trunks, failures = sweep(names)
    for name, error in failures.items():
        print(f"cannot build {name}: {error}", file=sys.stderr)
    print(f"{len(trunks)} trunks among {len(names)} architectures; {len(failures)} cannot be built")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in trunks.items())
    text = f"{{\n{lines}\n}}\n"
    return write_or_check(TARGET, text, args.check, "timm_trunks")


if __name__ == "__main__":
    sys.exit(main())
