"""Parameters, multiply-adds and file size of a built model, counted on the meta device: nothing is computed."""

from __future__ import annotations

import json
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


def safetensors_bytes(model: nn.Module) -> int:
    """Return the size of a float32 model's safetensors file, as timm saves it, without its values.

    Source: the format's description, https://huggingface.co/docs/safetensors: eight bytes, a JSON header that is padded
    to eight bytes, the tensors.
    """
    header, end = {}, 0
    for name, tensor in sorted(model.state_dict().items()):
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + end
