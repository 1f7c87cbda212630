"""Assertions that several tests share."""

import torch
from torch import nn


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give every parameter and buffer a non-trivial value, so that no layer is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.copy_(0.5 + noise.abs() if name.endswith("running_var") else noise / fan_in**0.5)
    return model


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of the expected tensor."""
    return float((actual - expected).norm() / expected.norm())


def largest_difference(a: nn.Module, b: nn.Module, x: torch.Tensor) -> float:
    """Return the largest absolute difference of two models' outputs in eval mode."""
    with torch.no_grad():
        return float((a.eval()(x) - b.eval()(x)).abs().max())
