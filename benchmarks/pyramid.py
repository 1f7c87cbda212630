"""Which decoders run on which names, and the cost of the feature pyramid compared with timm's features of a plain ViT.

    python -m benchmarks.pyramid [--repeats 5]

Decoders run on the meta device, where only shapes are computed. Memory is counted there too: the float32 tensors that
autograd keeps for the backward pass of one image. Time is for a forward pass of one image; the models take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from benchmarks.load import machine

DECODERS = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "UPerNet", "Segformer", "PAN", "DeepLabV3Plus", "PSPNet")
NAMES = (
    "vit_tiny_patch16_224",
    "vit_ti16_convstem_pyramid",
    "vit_b16_convstem_pyramid",
    "vit_s32_convstem_pyramid",
    "vit_s8_convstem_pyramid",
    "vitc_18gf_pyramid",
    "vit_s16_dinov3_convstem_pyramid",
    "vit_nano4_convstem_pyramid",
)
PAIRS = (("vit_small_patch16_224", "vit_s16_convstem"), ("vit_base_patch16_224", "vit_b16_convstem"))


def runs(decoder: str, name: str) -> str:
    """Return ``yes``, the first words of the error, or the wrong shape."""
    try:
        with torch.device("meta"):
            model = getattr(smp, decoder)(f"tu-{name}", encoder_weights=None).eval()
            masks = model(torch.empty(1, 3, 256, 256))
    except Exception as error:
        return " ".join(str(error).split()[:2])
    return "yes" if masks.shape == (1, 1, 256, 256) else f"{tuple(masks.shape)}"


def extractor(name: str, pyramid: bool, **kwargs: Any) -> nn.Module:
    """Return a model of the last block's features, or of a pyramid of five levels."""
    if pyramid:
        return timm.create_model(name, features_only=True, feature_cls="pyramid", **kwargs)
    return timm.create_model(name, features_only=True, out_indices=(-1,), dynamic_img_size=True, **kwargs)


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def kept_bytes(name: str, pyramid: bool, side: int) -> int:
    """Return the bytes of activations that autograd keeps for one image."""
    with torch.device("meta"):
        model = extractor(name, pyramid)
        x = torch.empty(1, 3, side, side)
    owned = {StorageWeakRef(p.untyped_storage()) for p in model.parameters()}
    kept: dict[StorageWeakRef, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        key = StorageWeakRef(tensor.untyped_storage())
        if key not in owned:
            kept[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = model(x)
    assert maps
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@torch.no_grad()
def milliseconds(models: list[nn.Module], side: int, repeats: int) -> list[float]:
    """Return the median forward time of each model, run in turns."""
    x = torch.rand(1, 3, side, side)
    spent: list[list[float]] = [[] for _ in models]
    for turn in range(repeats + 1):
        for model, times in zip(models, spent, strict=True):
            start = time.perf_counter()
            model(x)
            if turn:  # the first warms up
                times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in spent]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore")
    print(machine("cpu"), f"{torch.get_num_threads()} threads", sep=", ")
    print("\ndecoders of segmentation_models_pytorch", smp.__version__, "with their defaults, 256 x 256 pixels\n")
    print(f"{'':<34}" + "".join(f"{decoder:>15}" for decoder in DECODERS))
    for name in NAMES:
        print(f"{name:<34}" + "".join(f"{runs(decoder, name)[:14]:>15}" for decoder in DECODERS), flush=True)
    print("\nfive levels beside the last block's features of the plain ViT, one image\n")
    print(f"{'':<24}{'M params':>18}{'ms, 224 px':>20}{'MB kept, 512 px':>22}{'MB kept, 1024 px':>22}")
    for plain, ours in PAIRS:
        models = [extractor(plain, False).eval(), extractor(ours, True).eval()]
        cells = [
            [f"{parameters(model) / 1e6:.2f}" for model in models],
            [f"{ms:.0f}" for ms in milliseconds(models, 224, repeats)],
            *([f"{kept_bytes(n, n == ours, side) / 1e6:.0f}" for n in (plain, ours)] for side in (512, 1024)),
        ]
        print(
            f"{ours:<24}" + "".join(f"{f'{a} -> {b}':>{w}}" for (a, b), w in zip(cells, (18, 20, 22, 22), strict=True))
        )


if __name__ == "__main__":
    main()
