"""Finds the stem of a model of either host, and the maps inside it; freezes it for fine-tuning."""

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
    """A map inside a stem."""

    layer: int
    """Index of the layer whose output it is."""
    name: str
    """That layer's name in the stem."""
    channels: int
    stride: int
    """In pixels of the image."""


def stem_levels(stem: nn.Sequential) -> list[StemLevel]:
    """Return the maps inside a stem: one per stride between the image's and the patch's.

    A map is taken where its stride is complete: behind the activation of the last layer before the next stride. A
    layer's stride is that of the convolutions in it, so any sequence of layers will do, whatever its norm.
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
    """The layers of a stem, shared with it; a forward pass also returns the maps inside.

    Args:
        stem: timm's ``ConvStem`` or torchvision's ``conv_proj``.
        levels: the maps to return.
        whole: keep the layers behind the last of them, which make the patch embedding.
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
        from convstem.stem.embed import refuse_lost_activations  # imports timm, which torchvision's models do not need

        refuse_lost_activations(self)
        return super().train(mode)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Map images [batch, in_chans, height, width] to the maps inside, finest first, and the last layer's output."""
        maps: list[Tensor] = []
        for index, layer in enumerate(self):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps, x


def find_stem(model: nn.Module) -> nn.Sequential:
    """Return the layers of the conv stem in a model of timm or torchvision, or in a feature pyramid of one.

    Raises:
        UnsupportedModelError: there is none.
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
    """Return where the ``ConvStemEmbed`` of a timm model lies, or None."""
    from convstem.stem.embed import ConvStemEmbed  # imports timm, which torchvision's models do not need

    return next((path for path, module in model.named_modules() if isinstance(module, ConvStemEmbed)), None)


def freeze_stem(model: nn.Module, bn_only: bool = False) -> nn.Module:
    """Freeze a model's stem in place and return the model.

    BatchNorm becomes timm's or torchvision's frozen BatchNorm, whose statistics, weight and bias are constants: there
    is no mode to switch back. State-dict keys stay, but for ``num_batches_tracked``.

    Args:
        model: a conv-stem ViT of timm or torchvision.
        bn_only: freeze only the norms; the stem's convolutions go on training.

    Raises:
        UnsupportedModelError: the model has no conv stem.
    """
    from timm.layers import freeze_batch_norm_2d

    stem = find_stem(model)
    with next(stem.parameters()).device:  # timm makes the frozen ones on torch's default device
        freeze_batch_norm_2d(stem)
    if not bn_only:
        stem.requires_grad_(False)
    return model
