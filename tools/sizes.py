"""Parameters and multiply-adds of a built model, counted on the meta device: nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def num_params(model: nn.Module) -> int:
    """Return the number of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, input_size: Sequence[int]) -> int:
    """Return the multiply-adds of one image: convolutions, linear layers and attention products.

    Args:
        model: on the meta device; it is left in eval mode and without gradients.
        input_size: channels, height and width of the image, in pixels.
    """
    model.eval().requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *input_size, device="meta"))
    return counter.get_total_flops() // 2
