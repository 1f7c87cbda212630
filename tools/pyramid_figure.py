"""Draw the figure of docs/segmentation.md: a photograph and its maps at strides 2 to 32.

    python -m tools.dinov2_vit_small DINOV2.safetensors
    python -m tools.pyramid_figure DINOV2.safetensors docs/images/pyramid.png

The maps are those of a transplanted DINOv2 ViT-S. The colours of a map are its first three principal components.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

import convstem
from tools import dinov2_vit_small

SIDE = 256


def photograph() -> Image.Image:
    """Return scikit-image's photograph of a cat as a square."""
    from skimage import data

    return v2.CenterCrop(300)(Image.fromarray(data.chelsea())).resize((SIDE, SIDE))


def colours(maps: list[Tensor]) -> list[Tensor]:
    """Return maps [channels, rows, columns] as colours [rows, columns, 3] in 0..1, by shared principal components."""
    every = torch.cat([level.flatten(1).T for level in maps])
    torch.manual_seed(0)  # pca_lowrank is randomised
    _, _, axes = torch.pca_lowrank(every, q=3)
    low, high = (((every - every.mean(0)) @ axes).quantile(q, dim=0) for q in (0.01, 0.99))
    found = []
    for level in maps:
        components = (level.flatten(1).T - every.mean(0)) @ axes
        found.append(((components - low) / (high - low)).clamp(0, 1).view(*level.shape[1:], 3))
    return found


@torch.no_grad()
def levels(weights: Path, photo: Image.Image) -> dict[str, Tensor]:
    """Return the colours of every level, by title."""
    model = convstem.feature_pyramid(convstem.transplant(dinov2_vit_small.load_patch16(weights))).eval()
    prepare = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD),
        ]
    )
    maps = model(prepare(photo)[None]).values()
    return {
        f"level {index}, stride {SIDE // level.shape[-1]}\n{level.shape[1]} x {level.shape[2]} x {level.shape[3]}": (
            colours([level[0]])[0]
        )
        for index, level in enumerate(maps)
    }


def command_line(description: str) -> argparse.Namespace:
    """Parse the command line of a figure."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("weights", type=Path, help="written by tools.dinov2_vit_small")
    parser.add_argument("out", type=Path)
    return parser.parse_args()


def draw(panels: Mapping[str, Any], out: Path, width: float, height: float, fontsize: int) -> None:
    """Draw panels side by side, each below its title; width and height of a panel are in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(width * len(panels), height), layout="tight")
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(title, fontsize=fontsize)
        axis.axis("off")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80, bbox_inches="tight")


def main() -> None:
    """Write the figure."""
    args = command_line(str(__doc__))
    photo = photograph()
    panels = {f"image\n3 x {SIDE} x {SIDE}": photo, **levels(args.weights, photo)}
    draw(panels, args.out, 2, 2.5, 9)


if __name__ == "__main__":
    main()
