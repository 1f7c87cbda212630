"""Channels that carry nothing: their weights are drawn, and their norms calibrated, so that training can use them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convstem.registry.stem_spec import StemSpec
from convstem.transplanting.plan import LayerPlan
from convstem.transplanting.statistics import PatchStatistics

SPARE_IMAGES = 16
"""Synthetic images of 2 x 2 patches from which unused channels get their running statistics."""


NORM_TENSORS = ("running_mean", "running_var", "weight", "bias")
"""BatchNorm's tensors in the order of ``torch.nn.functional.batch_norm``."""


VARIANCE_FLOOR = 1e-12
"""Smallest running variance, for contents that do not vary in the statistics."""


def fill_spare(weight: Tensor, generator: torch.Generator) -> None:
    """Draw the incoming weights [spare, channels, kernel, kernel] of unused channels, in place.

    Source: He et al., "Delving deep into rectifiers", arXiv 1502.01852, fan-in mode.
    """
    fan_in = weight[:1].numel() or 1
    weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)


def calibrate_spare(
    state: dict[str, Tensor], plans: list[LayerPlan], stem: StemSpec, images: Tensor, bn_eps: float
) -> None:
    """Set the running statistics of unused channels, in place, from what the layers make of some images.

    Args:
        state: the stem's state dict; its norms are BatchNorms.
        plans: one for each layer before the last 1x1; some have unused channels.
        stem: the stem.
        images: [batch, in_chans, height, width], float64.
        bn_eps: the BatchNorms' epsilon.
    """
    activations = images
    last = max(index for index, plan in enumerate(plans) if plan.used < plan.width)
    for index, plan in enumerate(plans[: last + 1]):
        kernel, stride = stem.kernel_sizes[index], stem.strides[index]
        weight = state[f"{index}.conv.weight"].double()
        response = F.conv2d(activations, weight, stride=stride, padding=(kernel - 1) // 2)
        mean, variance, gain, bias = (state[f"{index}.bn.{name}"] for name in NORM_TENSORS)
        spare = slice(plan.used, None)
        seen_variance, seen_mean = torch.var_mean(response, (0, 2, 3))
        mean[spare] = seen_mean[spare]
        variance[spare] = seen_variance[spare].clamp_min(VARIANCE_FLOOR)
        normalised = F.batch_norm(response, mean.double(), variance.double(), gain.double(), bias.double(), eps=bn_eps)
        activations = normalised.relu()


def synthetic_images(
    statistics: PatchStatistics, box: tuple[Tensor, Tensor] | None, generator: torch.Generator
) -> Tensor:
    """Draw images [SPARE_IMAGES, in_chans, 2p, 2p] of patches with these statistics, within the pixel range ``box``."""
    in_chans, size = statistics.in_chans, statistics.patch_size
    noise = torch.empty(4 * SPARE_IMAGES, statistics.mean.numel(), dtype=torch.float64)
    factor = torch.linalg.cholesky(statistics.covariance)
    patches = noise.normal_(generator=generator) @ factor.T + statistics.mean.flatten()
    tiled = patches.view(SPARE_IMAGES, 2, 2, in_chans, size, size).permute(0, 3, 1, 4, 2, 5)
    images: Tensor = tiled.reshape(SPARE_IMAGES, in_chans, 2 * size, 2 * size)
    if box is None:
        return images
    low, high = box
    return images.clamp(low[:, None, None], high[:, None, None])
