"""How a fresh stem is initialised."""

from __future__ import annotations

from torch import nn


def init_stem(stem: nn.Module) -> None:
    """Initialise a stem's convolutions in place, the same way for both hosts.

    The layers before a norm get variance ``2 / fan_out``, the last 1x1 ``1 / fan_out`` and a zero bias.

    Source: pycls/models/vit.py, the paper's own code.
    """
    convs = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        last = conv is convs[-1]
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="linear" if last else "relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
