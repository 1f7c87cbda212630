"""Finds a model's stem in either host, and the feature maps inside it; freezes it for fine-tuning."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision.models import VisionTransformer

from convstem.errors import UnsupportedModelError


@dataclass(frozen=True)
class StemLevel:
    """A feature map inside a stem."""

    layer: int
    """Index of the layer that outputs it."""
    name: str
    """That layer's name in the stem."""
    channels: int
    stride: int
    """In pixels of the image."""


def stem_levels(stem: nn.Sequential) -> list[StemLevel]:
    """Return the feature maps inside a stem: one per stride between 1 and the patch size.

    Each is the output of the last layer with its stride, activation included. A layer's stride is the product of its
    convolutions' strides, so any sequence of layers works, with any norm.
    """
    levels: list[StemLevel] = []
    last = StemLevel(-1, "", 0, 1)  # the image
    for index, (name, layer) in enumerate(stem.named_children()):
        convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
        stride = math.prod(conv.stride[0] for conv in convs)
        if stride > 1 and last.stride > 1:
            levels.append(last)
        channels = convs[-1].out_channels if convs else last.channels
        last = StemLevel(index, name, channels, last.stride * stride)
    return levels


class StemMaps(nn.Sequential):
    """The layers of a stem, shared with it; a forward pass also returns the feature maps inside.

    Args:
        stem: timm's ``ConvStem`` or torchvision's ``conv_proj``.
        levels: the feature maps to return.
        whole: keep the layers after the last map, which make the patch embedding.
    """

    def __init__(self, stem: nn.Sequential, levels: list[StemLevel], whole: bool = True) -> None:
        layers = list(stem.named_children())
        end = len(layers) if whole else levels[-1].layer + 1
        super().__init__(OrderedDict(layers[:end]))
        self.taps = [level.layer for level in levels]

    def train(self, mode: bool = True) -> StemMaps:
        """Set train or eval mode.

        Raises:
            UnsupportedModelError: see ``refuse_lost_activations``.
        """
        from convstem.stem.embed import refuse_lost_activations  # imports timm, not needed for torchvision models

        refuse_lost_activations(self)
        return super().train(mode)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Map images [batch, in_chans, height, width] to the maps, finest first, and the last layer's output."""
        maps: list[Tensor] = []
        for index, layer in enumerate(self):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps, x


def find_stem(model: nn.Module) -> nn.Sequential:
    """Return the layers of the conv stem in a timm or torchvision model, or in its feature pyramid.

    Raises:
        UnsupportedModelError: the model has no conv stem.
    """
    if isinstance(model, VisionTransformer) and isinstance(model.conv_proj, nn.Sequential):
        return model.conv_proj
    embed = find_embed(model)
    if embed is not None:
        return embed.backbone
    for module in model.modules():
        if isinstance(module, StemMaps):
            return module
    raise UnsupportedModelError(
        f"{type(model).__name__} has no conv stem; create one of convstem.list_models() or transplant it"
    )


def find_embed(model: nn.Module) -> Any:
    """Return the ``ConvStemEmbed`` of a timm model, or None."""
    path = embed_path(model)
    return None if path is None else model.get_submodule(path)


def embed_path(model: nn.Module) -> str | None:
    """Return the path of a timm model's ``ConvStemEmbed``, or None."""
    from convstem.stem.embed import ConvStemEmbed  # imports timm, not needed for torchvision models

    return next((path for path, module in model.named_modules() if isinstance(module, ConvStemEmbed)), None)


def freeze_stem(model: nn.Module, bn_only: bool = False) -> nn.Module:
    """Freeze a model's stem in place and return the model.

    BatchNorm becomes timm's or torchvision's frozen BatchNorm, with constant statistics, weight and bias; this cannot
    be undone. State-dict keys stay the same, except that ``num_batches_tracked`` is gone.

    Args:
        model: a conv-stem ViT of timm or torchvision.
        bn_only: freeze only the norms; the stem's convolutions remain trainable.

    Raises:
        UnsupportedModelError: the model has no conv stem.
    """
    from timm.layers import freeze_batch_norm_2d

    stem = find_stem(model)
    with next(stem.parameters()).device:  # timm creates frozen norms on torch's default device
        freeze_batch_norm_2d(stem)
    if not bn_only:
        stem.requires_grad_(False)
    return model
