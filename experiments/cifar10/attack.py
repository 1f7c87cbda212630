"""Adversarial training: images moved, within a radius, to where the loss is larger (Madry et al., arXiv 1706.06083)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiments.cifar10.data import MEAN, STD


def perturb(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    radius: float,
    steps: int,
) -> Tensor:
    """Return images moved by projected gradient ascent from a random start, with the model in eval mode.

    Args:
        model: maps images to logits; its mode and gradients stay unchanged.
        images: normalised [batch, 3, height, width].
        targets: of the loss [batch, classes].
        loss: of logits and targets.
        radius: largest change of a pixel, in 1/255.
        steps: number of steps; each moves by 2.5 radii divided by it.
    """
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    reach = radius / 255 / std
    low, high = torch.maximum(images - reach, -mean / std), torch.minimum(images + reach, (1 - mean) / std)
    mode = model.training
    model.eval()
    moved = (images + reach * (2 * torch.rand_like(images) - 1)).clamp(low, high)
    for _ in range(steps):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(model(moved), targets), moved)
        moved = (moved.detach() + 2.5 / steps * reach * gradient.sign()).clamp(low, high)
    model.train(mode)
    return moved.detach()
