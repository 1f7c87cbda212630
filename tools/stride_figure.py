"""Draw the figure of docs/stride.md: one photograph, and its tokens at strides 16, 8 and 32.

    python -m tools.dinov2_vit_small DINOV2.safetensors
    python -m tools.stride_figure DINOV2.safetensors docs/images/stride.png

The tokens are those of the last block of DINOv2's ViT-S, transplanted at each stride; at stride 32 the photograph has
twice the height and width. The colours are the first three principal components over all panels together, so that a
colour means the same in each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

import convstem
from tools import dinov2_vit_small
from tools.pyramid_figure import colours, command_line, draw

SIDE = 448
STRIDES = (16, 8, 32)


def photograph(side: int) -> Tensor:
    """Return scikit-image's photograph of a cat as a square [3, side, side] in 0..1."""
    from skimage import data

    prepare = v2.Compose([v2.CenterCrop(300), v2.Resize(side, antialias=True), v2.ToImage()])
    return v2.functional.to_dtype(prepare(Image.fromarray(data.chelsea())), torch.float32, scale=True)


@torch.no_grad()
def tokens(weights: Path, stride: int) -> Tensor:
    """Return the normalised tokens of the last block, [channels, rows, columns]."""
    plain: Any = dinov2_vit_small.load_patch16(weights)
    plain.set_input_size(img_size=SIDE)
    model: Any = convstem.transplant(plain, stride=stride).eval()
    image = photograph(model.patch_embed.img_size[0])
    normalise = v2.Normalize(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    (last,) = model.forward_intermediates(normalise(image)[None], indices=1, norm=True, intermediates_only=True)
    return last[0]


def main() -> None:
    """Write the figure."""
    args = command_line(str(__doc__))
    maps = [tokens(args.weights, stride) for stride in STRIDES]
    panels: dict[str, Any] = {f"image\n{SIDE} x {SIDE} pixels": photograph(SIDE).permute(1, 2, 0)}
    for stride, level, panel in zip(STRIDES, maps, colours(maps), strict=True):
        rows, columns = level.shape[1:]
        size = SIDE * max(stride // dinov2_vit_small.PATCH, 1)
        panels[f"stride {stride}, {size} x {size} pixels\n{rows} x {columns} tokens"] = panel
    draw(panels, args.out, 3, 3.4, 10)


if __name__ == "__main__":
    main()
