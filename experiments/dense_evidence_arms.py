"""The arms of the dense evidence: the sources of the maps, and the two decoders on top of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import convstem
from convstem.stem.find import find_stem
from experiments.pyramid_evidence import Maps, plain_backbone
from experiments.pyramid_evidence_arms import FOUR_BLOCKS, decoder_for, random_stem, with_random_stem


@dataclass(frozen=True)
class Sources:
    """The pretrained ViT from which all arms start; each call makes a fresh one."""

    weights: Path

    def plain(self) -> nn.Module:
        """Return the plain ViT, with patch 16."""
        return plain_backbone(self.weights)

    def transplant(self, stride: int = 16) -> nn.Module:
        """Return its transplant at a stride."""
        return convstem.transplant(self.plain(), stride=stride)


class Encoder(nn.Module):
    """Computes maps of images.

    Args:
        body: takes normalised images and returns maps, coarsest first, each at half the stride of the one before, the
            last at stride 2; None is a missing map.
        fresh: the part of ``body`` to train at the rate of random weights, if any.
    """

    def __init__(self, body: nn.Module, fresh: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.fresh = list(fresh.parameters()) if fresh else []
        self.register_buffer("mean", torch.tensor(timm.data.IMAGENET_DEFAULT_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(timm.data.IMAGENET_DEFAULT_STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> Maps:
        """Map images [batch, 3, height, width] in 0..1 to maps [batch, channels, rows, columns]."""
        return self.body((images - self.mean) / self.std)

    def groups(self, known: float, fresh: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups: the fresh part at rate ``fresh``, all other weights at rate ``known``."""
        new = {id(parameter) for parameter in self.fresh}
        old = [parameter for parameter in self.parameters() if id(parameter) not in new]
        return [{"params": old, "lr": known}, *([{"params": self.fresh, "lr": fresh}] if new else [])]


class Plain(nn.Module):
    """The maps of a patchify ViT: those of some blocks at stride 16, and finer ones from a branch, if there is one."""

    def __init__(self, model: nn.Module, blocks: tuple[int, ...] = (11,), branch: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.blocks, self.branch = model, list(blocks), branch

    def forward(self, x: Tensor) -> Maps:
        """Map normalised images to maps of strides 16, 8, 4 and 2."""
        maps = self.model.forward_intermediates(x, indices=self.blocks, norm=True, intermediates_only=True)
        return [torch.cat(maps, dim=1), *(self.branch(x) if self.branch else [None, None, None])]


class Pyramid(nn.Module):
    """The maps of a transplant: that of its tokens and, with ``stem_maps``, those of its stem, in one pass."""

    def __init__(self, model: nn.Module, stem_maps: bool) -> None:
        super().__init__()
        finer = int(model.patch_embed.feat_ratio()).bit_length() - 2  # strides 2, 4, ... below the tokens'
        self.maps = convstem.feature_pyramid(model, range(finer, -1, -1) if stem_maps else (finer,))
        self.missing = 0 if stem_maps else finer

    def forward(self, x: Tensor) -> Maps:
        """Map normalised images to maps, the coarsest first."""
        return [*self.maps(x).values(), *[None] * self.missing]


class Upsampled(nn.Module):
    """The tokens of stride 16, upsampled to stride 8."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Maps:
        """Map normalised images to maps of strides 8, 4 and 2."""
        tokens = functional.interpolate(self.body(x)[0], scale_factor=2.0, mode="bilinear", align_corners=False)
        return [tokens, None, None]


class Enlarged(nn.Module):
    """The tokens at stride 16 of the image at twice the size, which is stride 8 of the image itself."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Maps:
        """Map normalised images to maps of strides 8, 4 and 2."""
        return self.body(functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))[:-1]


class Centred(nn.Module):
    """Tokens at stride 8 that see 16 pixels; the image is moved by 4 pixels to put each token at its patch's centre."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Maps:
        """Map normalised images to maps of strides 8, 4 and 2."""
        return self.body(functional.pad(x, (4, -4, 4, -4)))


def _fast_stem(sources: Sources, _: int) -> Encoder:
    model = sources.transplant()
    return Encoder(Pyramid(model, stem_maps=True), find_stem(model))


def _random_stem(sources: Sources, seed: int) -> Encoder:
    model = with_random_stem(sources.transplant(), seed)
    return Encoder(Pyramid(model, stem_maps=True), find_stem(model))


def _random_maps(sources: Sources, seed: int) -> Encoder:
    branch = random_stem(sources.transplant(), seed)
    return Encoder(Plain(sources.plain(), branch=branch), branch)


ARMS: dict[str, Callable[[Sources, int], Encoder]] = {
    "stride 16": lambda sources, _: Encoder(Plain(sources.plain())),
    "upsampled": lambda sources, _: Encoder(Upsampled(Plain(sources.plain()))),
    "stride 8": lambda sources, _: Encoder(Centred(Pyramid(sources.transplant(8), stem_maps=False))),
    "not moved": lambda sources, _: Encoder(Pyramid(sources.transplant(8), stem_maps=False)),
    "enlarged": lambda sources, _: Encoder(Enlarged(Plain(sources.plain()))),
    "four blocks": lambda sources, _: Encoder(Plain(sources.plain(), FOUR_BLOCKS)),
    "stem maps": lambda sources, _: Encoder(Pyramid(sources.transplant(), stem_maps=True)),
    "fast stem": _fast_stem,
    "random maps": _random_maps,
    "random stem": _random_stem,
}
"""Name -> encoder; the number is the seed of its random weights."""


class Linear(nn.Module):
    """Sums 1x1 convolutions of the normalised maps, each upsampled to the image's size: a linear decoder."""

    def __init__(self, channels: list[int], outputs: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, c), nn.Conv2d(c, outputs, 1)) if c else nn.Identity() for c in channels
        )

    def forward(self, maps: Maps) -> Tensor:
        """Map [batch, channels, rows, columns], coarsest first, to [batch, outputs, height, width]."""
        size = [side * 2 ** len(maps) for side in maps[0].shape[-2:]]
        outputs = [head(part) for head, part in zip(self.heads, maps, strict=True) if part is not None]
        large = [functional.interpolate(o, size=size, mode="bilinear", align_corners=False) for o in outputs]
        return torch.stack(large).sum(0)


def linear_for(maps: Maps, outputs: int) -> Linear:
    """Return the linear decoder for these maps."""
    return Linear([0 if part is None else part.shape[1] for part in maps], outputs)


DECODERS: dict[str, Callable[[Maps, int], nn.Module]] = {"linear": linear_for, "decoder": decoder_for}
