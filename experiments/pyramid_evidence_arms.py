"""The arms of the pyramid evidence: the sources of the fine maps, and the decoder on top of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import convstem
from convstem.stem.find import find_stem
from convstem.stem.norms import init_stem, stem_norm

FOUR_BLOCKS = (2, 5, 8, 11)
PARAMETERS = 60_000
"""Upper limit for a decoder, which sets its width, so that all arms have about as many parameters."""


class Encoder(nn.Module):
    """A transplanted ViT with the maps of an arm.

    Args:
        model: timm's ViT with a conv stem; its parameters are shared.
        arm: one of ``ARMS``.
    """

    def __init__(self, model: nn.Module, arm: str) -> None:
        super().__init__()
        blocks = FOUR_BLOCKS if arm == "four blocks" else (-1,)
        last = tuple(range(3, 3 + len(blocks)))
        self.trunk = convstem.feature_pyramid(model, last, pyramid_blocks=blocks)
        self.fine = ARMS[arm](model)
        self.register_buffer("mean", torch.tensor(timm.data.IMAGENET_DEFAULT_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(timm.data.IMAGENET_DEFAULT_STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor | None]:
        """Map images [batch, 3, height, width] in 0..1 to maps of strides 16, 8, 4 and 2; None is a missing map."""
        x = (images - self.mean) / self.std
        coarse = torch.cat(list(self.trunk(x).values()), dim=1)
        return [coarse, *self.fine(x)]


class NoMaps(nn.Module):
    """No fine maps, as in a patchify model."""

    def forward(self, x: Tensor) -> list[None]:
        """Map images to three missing maps."""
        return [None, None, None]


class StemMaps(nn.Module):
    """The maps of a model's stem."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.maps = convstem.feature_pyramid(model, (2, 1, 0))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images [batch, 3, height, width] to maps of strides 8, 4 and 2."""
        return list(self.maps(x).values())


class Pixels(nn.Module):
    """The pixels, rearranged into channels."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images [batch, 3, height, width] to maps of strides 8, 4 and 2."""
        return [functional.pixel_unshuffle(x, stride) for stride in (8, 4, 2)]


def with_random_stem(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of a model with random weights in its stem."""
    other = copy.deepcopy(model)
    stem = find_stem(other)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        init_stem(stem, stem_norm(stem))
    return other


def random_stem(model: nn.Module, seed: int = 0) -> StemMaps:
    """Return the maps of the same stem with random weights."""
    return StemMaps(with_random_stem(model, seed))


ARMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "trunk": lambda _: NoMaps(),
    "four blocks": lambda _: NoMaps(),
    "stem": StemMaps,
    "random stem": random_stem,
    "pixels": lambda _: Pixels(),
}


class Decoder(nn.Module):
    """Upsamples the coarsest map to the image's size by factors of two, adding the lateral maps there are."""

    def __init__(self, channels: list[int], outputs: int, width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, c), nn.Conv2d(c, width, 1)) if c else nn.Identity() for c in channels
        )
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(1, width), nn.GELU())
            for _ in channels[1:]
        )
        self.head = nn.Conv2d(width, 4 * outputs, 3, padding=1)

    def forward(self, maps: list[Tensor | None]) -> Tensor:
        """Map [batch, channels, rows, columns], coarsest first, to [batch, outputs, height, width]."""
        x = self.laterals[0](maps[0])
        for lateral, conv, finer in zip(self.laterals[1:], self.convs, maps[1:], strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            if finer is not None:
                x = x + lateral(finer)
            x = x + conv(x)
        return functional.pixel_shuffle(self.head(x), 2)


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def decoder_for(maps: list[Tensor | None], outputs: int) -> Decoder:
    """Return the widest decoder for these maps with at most ``PARAMETERS`` parameters."""
    channels = [0 if m is None else m.shape[1] for m in maps]
    with torch.device("meta"):
        width = max(w for w in range(8, 64) if parameters(Decoder(channels, outputs, w)) <= PARAMETERS)
    return Decoder(channels, outputs, width)
