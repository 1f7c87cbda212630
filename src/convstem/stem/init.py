"""How a fresh stem is initialised."""

from __future__ import annotations

from typing import Literal

from torch import nn


def init_stem(stem: nn.Module, norm: str) -> None:
    """Initialise a stem's convolutions in place, the same way for both hosts.

    The layers before a norm get variance ``2 / fan_out``, the last convolution ``1 / fan_out`` and a zero bias. Where
    nothing normalises, the layers get ``2 / fan_in``, which keeps the variance from layer to layer.

    Args:
        stem: holds the convolutions.
        norm: the stem's ``stem_norm``.

    Source: pycls/models/vit.py, the paper's own code; He et al., arXiv 1502.01852, section 2.2.
    """
    mode: Literal["fan_in", "fan_out"] = "fan_in" if norm in ("frozen_bn", "none") else "fan_out"
    convs = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        if conv is convs[-1]:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="linear")
        else:
            nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
