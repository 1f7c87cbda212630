"""timm's optimizers, and a version of its Muon that is faster on a CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import Muon, create_optimizer_v2, param_groups_weight_decay
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor, nn

from experiments.cifar10.settings import Settings

COEFFICIENTS = [(3.4445, -4.7750, 2.0315)]
"""Coefficients of the Newton-Schulz iteration: K. Jordan, "Muon: An optimizer for hidden layers in neural networks",
2024."""


class StackedMuon(Muon):
    """timm's Muon that orthogonalises all matrices of one shape together, on a CPU in float32.

    timm does it one by one in bfloat16, which a CPU without bfloat16 arithmetic must emulate. All other parameters are
    left to timm's AdamW, as in timm's Muon.

    Args:
        params: parameters or groups.
        dtype: of the iteration; default: bfloat16 on an accelerator, float32 elsewhere.
        kwargs: arguments of timm's Muon; ``conv_mode`` must stay "flatten".
    """

    def __init__(self, params: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(params, ns_coefficients=COEFFICIENTS, **kwargs)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the matrices here, then everything else in timm's step, with the matrices' gradients hidden."""
        hidden: list[tuple[Tensor, Tensor | None]] = []
        for group in self.param_groups:
            for matrices in by_shape(group["params"]):
                self.update(matrices, group)
                hidden += [(matrix, matrix.grad) for matrix in matrices]
        for matrix, _ in hidden:
            matrix.grad = None
        super().step(closure)
        for matrix, grad in hidden:
            matrix.grad = grad

    def update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape, in place.

        Args:
            matrices: [outputs, inputs, ...]; all axes after the first are flattened.
            group: rate, weight decay and momentum.
        """
        grads = [matrix.grad for matrix in matrices]
        moments = [self.moment(matrix) for matrix in matrices]
        torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
        stack = torch.stack([moment.flatten(1) for moment in moments])
        if group["nesterov"]:
            stack = torch.stack([grad.flatten(1) for grad in grads]).lerp(stack, group["momentum"])
        dtype = self.dtype or (torch.float32 if stack.device.type == "cpu" else torch.bfloat16)
        turned = zeropower_via_newtonschulz(stack, group["ns_steps"], COEFFICIENTS, group["eps"], dtype=dtype)
        scale = get_lr_scale(stack.shape, group["adjust_lr_fn"])
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        parts = [part.view_as(matrix) for part, matrix in zip(turned.to(stack.dtype), matrices, strict=True)]
        torch._foreach_add_(matrices, parts, alpha=-group["lr"] * scale)

    def moment(self, matrix: Tensor) -> Tensor:
        """Return the momentum of a matrix, under timm's names."""
        state = self.state[matrix]
        if not state:
            state.update(use_muon=True, momentum_buffer=torch.zeros_like(matrix))
        return state["momentum_buffer"]


def by_shape(parameters: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Return the parameters with a gradient that are matrices, grouped by shape; tokens and positions do not count."""
    groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None and parameter.ndim > 1 and min(parameter.shape[:2]) > 1:
            groups[parameter.shape].append(parameter)
    return groups.values()


def create(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer in the settings, with timm's rule for parameters without weight decay."""
    shared: dict[str, Any] = {"lr": settings.lr, "momentum": settings.momentum}
    if settings.opt != "stackedmuon":
        decays = {"weight_decay": settings.weight_decay, "layer_decay": settings.layer_decay or None}
        return create_optimizer_v2(model, settings.opt, **decays, **shared)
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=exempt)
    return StackedMuon(groups, **shared)
