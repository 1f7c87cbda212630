"""Stems of plain torch modules that carry a patch embedding, plus filters and images, for tests of ``carry``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convstem.registry.stem_spec import StemSpec
from convstem.stem.carried import TransplantReport
from convstem.stem.carry import carry

LOW, HIGH = -2.0, 2.5
"""Pixel range in every channel of the images below."""


def filters(embed_dim: int, in_chans: int, patch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(embed_dim, in_chans, patch, patch, generator=generator, dtype=torch.float64)
    return weight, torch.randn(embed_dim, generator=generator, dtype=torch.float64)


def white_images(in_chans: int, size: int, beyond: float = 0.0) -> Tensor:
    """Return independent uniform pixels, without any smoothness. ``beyond`` widens the range on both sides."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, in_chans, size, size + size, generator=generator, dtype=torch.float64)
    pixels[0, :, :2, :2], pixels[0, :, -2:, -2:] = 0, 1  # include the ends of the range
    return LOW - beyond + pixels * (HIGH - LOW + 2 * beyond)


def noise(in_chans: int, size: int) -> Tensor:
    """Return normally distributed pixels, far beyond the range of images."""
    generator = torch.Generator().manual_seed(5)
    return 3 * torch.randn(2, in_chans, size, 2 * size, generator=generator, dtype=torch.float64)


def build_stem(state: dict[str, Tensor], spec: StemSpec) -> nn.Sequential:
    """Build the stem from plain torch modules with these parameters, in eval mode and in their dtype."""
    layers: dict[str, nn.Module] = {}
    for layer in spec.layers(in_chans=state["0.conv.weight"].shape[1]):
        padding = 0 if layer.kernel_size == layer.stride else (layer.kernel_size - 1) // 2
        conv = nn.Conv2d(layer.in_chans, layer.channels, layer.kernel_size, layer.stride, padding, bias=spec.bias)
        norm = {} if spec.norm == "none" else {"bn": nn.BatchNorm2d(layer.channels)}
        parts = {"conv": conv, **norm, "act": nn.ReLU()}
        layers[str(len(layers))] = nn.Sequential()
        for name, part in parts.items():
            layers[str(len(layers) - 1)].add_module(name, part)
    last, kernel = nn.Sequential(), spec.last_kernel_size
    padding = 0 if kernel == spec.last_stride else (kernel - 1) // 2
    width = len(state[f"{len(layers)}.conv.bias"])
    last.add_module("conv", nn.Conv2d(spec.channels[-1], width, kernel, spec.last_stride, padding))
    layers[str(len(layers))] = last
    stem = nn.Sequential()
    for name, module in layers.items():
        stem.add_module(name, module)
    stem.to(state["0.conv.weight"].dtype).load_state_dict(state, strict=True)
    return stem.eval()


def transplant(
    spec: StemSpec, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32, **options: object
) -> tuple[nn.Sequential, TransplantReport]:
    state, report = carry(weight, bias, spec, **{"low": [LOW] * weight.shape[1], "dtype": dtype, **options})
    return build_stem(state, spec), report


@torch.no_grad()
def relative_error(stem: nn.Sequential, weight: Tensor, bias: Tensor | None, images: Tensor) -> float:
    expected = F.conv2d(images, weight, bias, stride=weight.shape[-1])
    got = stem(images.to(next(stem[-1].parameters()).dtype)).double()
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm())
