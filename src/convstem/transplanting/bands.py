"""Places the filters of an RGB model on some bands of a multispectral one; the other bands start at zero.

They are those of a patch embedding that will be transplanted, or of the first convolution of a stem.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import VisionTransformer

from convstem.errors import ArgumentError, UnsupportedModelError
from convstem.stem.find import find_embed, find_stem
from convstem.transplanting.patch_embedding import find_patch_embedding, projection_of
from convstem.upstream.private import timm_set_metadata


def spread_over_bands(weight: Tensor, in_chans: int, bands: Sequence[int]) -> Tensor:
    """Return the filters of a model with more input channels that computes the same from some of them.

    Args:
        weight: of the first layer, [filters, channels, k, k].
        in_chans: channels of the result.
        bands: for each channel of ``weight``, the one of the result that takes its filters, counted from 0.

    Returns:
        [filters, in_chans, k, k], zero for the bands that are not named.

    Raises:
        ArgumentError: too few channels; bands out of range, named twice, or not as many as ``weight`` has channels.
    """
    channels = weight.shape[1]
    in_chans, *chosen = map(_whole, (in_chans, *bands))
    if in_chans < channels:
        raise ArgumentError(f"in_chans must be at least {channels}, as many as the source has; got {in_chans}")
    if len(chosen) != channels or len({*chosen}) != channels or not all(0 <= band < in_chans for band in chosen):
        raise ArgumentError(
            f"bands must name {channels} different bands from 0 to {in_chans - 1}, one for each input channel of the "
            f"source; got {list(bands)}. Sentinel-2's red, green and blue are bands 3, 2, 1 of 13"
        )
    result = weight.new_zeros(len(weight), in_chans, *weight.shape[2:])
    result[:, chosen] = weight
    return result


def _whole(number: Any) -> int:
    """Return a whole number, of whatever library; raise ``ArgumentError`` for anything else."""
    try:
        return operator.index(number)
    except TypeError as error:
        raise ArgumentError(f"in_chans and bands are whole numbers, bands as many in a list; got {number!r}") from error


def first_convolution(model: nn.Module) -> Any:
    """Return the first convolution of a model's conv stem, in either host; None of a model without stem."""
    try:
        stem = find_stem(model)
    except UnsupportedModelError:
        return None
    return next(module for module in stem.modules() if isinstance(module, nn.Conv2d))


def widen_input(model: Any, in_chans: int | None, bands: Sequence[int] | None) -> None:
    """Give a model ``in_chans`` input channels, in place; see ``spread_over_bands``.

    Raises:
        ArgumentError: one of the two is missing, or the bands do not fit.
    """
    if in_chans is None or not isinstance(bands, Iterable):
        raise ArgumentError(
            f"in_chans and bands belong together; got in_chans={in_chans}, bands={bands}: bands says which of the new "
            "input channels take the filters of the model's own, in their order, and the others start at zero. For "
            "timm's rule, which repeats the filters, create the timm model with in_chans"
        )
    stem = find_embed(model)
    first = first_convolution(model) or projection_of(find_patch_embedding(model)[1])
    spread = spread_over_bands(first.weight.detach(), in_chans, bands)
    first.weight = nn.Parameter(spread, requires_grad=first.weight.requires_grad)
    first.in_channels = in_chans
    if isinstance(model, VisionTransformer):  # torchvision's knows of no channels
        return
    if stem is not None:
        stem.in_chans, stem.lowest = in_chans, None  # nobody tells how dark the new bands are
    if hasattr(model, "in_chans"):
        model.in_chans = in_chans
    timm_set_metadata(model, {"in_chans": in_chans})
    if cfg := getattr(model, "pretrained_cfg", None):
        size = (in_chans, *cfg["input_size"][1:])
        model.pretrained_cfg = model.default_cfg = {**cfg, "input_size": size}
