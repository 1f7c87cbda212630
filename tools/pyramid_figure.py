"""Draw the figure of docs/segmentation.md: a photograph and its maps at strides 2 to 32.

    python -m tools.dinov2_vit_small DINOV2.safetensors
    python -m tools.pyramid_figure DINOV2.safetensors docs/images/pyramid.png

The maps are those of DINOv2's ViT-S, transplanted. The colours of a map are its first three principal components.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

import convstem
from tools import dinov2_vit_small

SIDE = 256


def photograph() -> Image.Image:
    """Return scikit-image's photograph of a cat, square."""
    from skimage import data

    return v2.CenterCrop(300)(Image.fromarray(data.chelsea())).resize((SIDE, SIDE))


def colours(level: Tensor) -> Tensor:
    """Return the first three principal components of a map [channels, rows, columns] as [rows, columns, 3] in 0..1."""
    pixels = level.flatten(1).T
    torch.manual_seed(0)  # pca_lowrank is a randomised method
    _, _, axes = torch.pca_lowrank(pixels, q=3)
    components = (pixels - pixels.mean(0)) @ axes
    low, high = (components.quantile(q, dim=0) for q in (0.01, 0.99))
    return ((components - low) / (high - low)).clamp(0, 1).view(*level.shape[1:], 3)


@torch.no_grad()
def levels(weights: Path, photo: Image.Image) -> dict[str, Tensor]:
    """Return the colours of every level, by a title that says what it is."""
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
            colours(level[0])
        )
        for index, level in enumerate(maps)
    }


def main() -> None:
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="what tools.dinov2_vit_small wrote")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    photo = photograph()
    panels = {f"image\n3 x {SIDE} x {SIDE}": photo, **levels(args.weights, photo)}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(2 * len(panels), 2.5), layout="tight")
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    main()
