"""Builds the stem that takes the place of a patch embedding, in either host, and fills it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torchvision
from timm.layers import PatchEmbed
from torch import Tensor, nn

from convstem.layouts.engine import translate
from convstem.layouts.torchvision import TORCHVISION
from convstem.registry.stem_spec import StemSpec
from convstem.stem.embed import ConvStemEmbed
from convstem.stem.norms import fit_norm
from convstem.stem.vocabulary import to_torchvision


def timm_stem(old: PatchEmbed, spec: StemSpec) -> ConvStemEmbed:
    """Return a stem with a ``PatchEmbed``'s interface: sizes, output format, strictness and norm."""
    new = ConvStemEmbed(
        spec,
        img_size=old.img_size,
        patch_size=spec.patch_size,
        in_chans=old.proj.in_channels,
        embed_dim=old.proj.out_channels,
        flatten=old.flatten,
        strict_img_size=old.strict_img_size and not old.dynamic_img_pad,
        device=old.proj.weight.device,
        dtype=old.proj.weight.dtype,
    )
    new.output_fmt = old.output_fmt
    new.norm = copy.deepcopy(old.norm)
    return new


def torchvision_stem(old: nn.Conv2d, spec: StemSpec) -> nn.Module:
    """Return torchvision's own conv stem, taken from a model without blocks."""
    host = torchvision.models.VisionTransformer(
        spec.patch_size, spec.patch_size, 0, 1, old.out_channels, 1, conv_stem_configs=to_torchvision(spec)
    )
    layer = cast("Any", host.conv_proj[0])
    if layer[0].in_channels != old.in_channels:  # torchvision's model has no argument for it
        conv, bias = layer[0], layer[0].bias is not None
        layer[0] = nn.Conv2d(old.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=bias)

    host.conv_proj.register_load_state_dict_pre_hook(fit_norm)
    return host.conv_proj.to(device=old.weight.device, dtype=old.weight.dtype)


def load_stem(stem: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load transplanted tensors, which have the keys of a timm stem, into a stem of either host."""
    if isinstance(stem, ConvStemEmbed):
        stem.backbone.load_state_dict(state)
        return
    named = {f"patch_embed.backbone.{key}": tensor for key, tensor in state.items()}
    layers = len({key.partition(".")[0] for key in state}) - 1
    translated = translate(named, TORCHVISION.rows, "other", layers).state_dict
    stem.load_state_dict({key.removeprefix("conv_proj."): tensor for key, tensor in translated.items()})
