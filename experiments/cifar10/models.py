"""Models of the experiments: timm models by name, patchify twins, and a small convolutional teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import Attention, BatchNormAct2d
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convstem.registry import catalog
from experiments.cifar10.data import MEAN, STD
from experiments.cifar10.settings import Settings
from tools.cifar10 import CLASSES, SIZE, TRAIN_IMAGES

POOLED = {"global_pool": "avg", "class_token": False}
"""64 tokens instead of 65, without the class token that only the last block needs; not possible in torchvision's class.
"""


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution without bias, because a norm follows."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


class ConvNet(nn.Module):
    """A teacher that trains in few epochs: a 2x2 layer, then stages of two 3x3 layers; each stage halves the maps.

    After K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, without its frozen layers.

    Args:
        widths: channels of each stage.
        num_classes: outputs.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 256, 256), num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        inputs = 24
        layers: list[nn.Module] = [nn.Conv2d(3, inputs, 2, bias=False), BatchNormAct2d(inputs, act_layer=nn.GELU)]
        for width in widths:
            layers += [conv(inputs, width), nn.MaxPool2d(2), BatchNormAct2d(width, act_layer=nn.GELU)]
            layers += [conv(width, width), BatchNormAct2d(width, act_layer=nn.GELU)]
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [batch, 3, height, width] to logits [batch, num_classes]."""
        return self.head(self.layers(x).amax((2, 3)))


def twin_settings(name: str, stem: str) -> dict[str, Any]:
    """Return the settings for the model and arguments of an architecture, or of a patchify twin in timm's own class.

    Args:
        name: one of our architectures.
        stem: ``conv``, ``patchify`` (the same trunk), or ``patchify+1`` (one more block, for about the same cost).
    """
    if stem == "conv":
        return {"model": name, "model_kwargs": {}}
    spec = catalog.models()[name]
    trunk = {field: getattr(spec, field) for field in ("patch_size", "embed_dim", "num_heads", "mlp_ratio")}
    depth = spec.depth + stem.count("+1")
    return {"model": "vit_tiny_patch16_224", "model_kwargs": {"img_size": SIZE, "depth": depth, **trunk, **CFG}}


CFG = {"pretrained_cfg_overlay": {"mean": MEAN, "std": STD}}
"""Normalisation of a patchify twin's images, which a transplant needs."""

STEMS = ("conv", "patchify", "patchify+1")
"""The compared stems."""

COLOURS = dict(zip(STEMS, ("tab:blue", "tab:orange", "tab:red"), strict=True))
"""Colours in pictures."""

OURS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet}


def create(settings: Settings) -> nn.Module:
    """Return the untrained model of the settings, seeded, in channels-last memory."""
    torch.manual_seed(settings.seed)
    arguments = dict(settings.model_kwargs)
    if settings.small_epochs:
        arguments.setdefault("dynamic_img_size", True)
    build = OURS.get(settings.model, partial(timm.create_model, settings.model))
    return build(num_classes=len(CLASSES), **arguments).to(memory_format=torch.channels_last)


def set_fused_attn(model: nn.Module, fused: bool) -> None:
    """Compute attention in one operation, or in several."""
    for layer in attentions(model):
        layer.fused_attn = fused


def attentions(model: nn.Module) -> list[Any]:
    """Return a model's attention layers."""
    return [layer for layer in model.modules() if isinstance(layer, Attention)]


def autocast(settings: Settings, device: str) -> Any:
    """Return the context for a forward pass."""
    return torch.autocast(device.split(":")[0], torch.bfloat16) if settings.amp else nullcontext()


def count(model: nn.Module, size: int = SIZE) -> dict[str, Any]:
    """Return a model's parameters, and its GMACs for one image of a size in pixels."""
    device = next(model.parameters()).device
    fused = [(layer, layer.fused_attn) for layer in attentions(model)]
    set_fused_attn(model, False)  # torch does not count fused attention on a CPU
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size, device=device))
    for layer, before in fused:
        layer.fused_attn = before
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "gmacs": flops.get_total_flops() / 2e9}


def pflop(run: Mapping[str, Any]) -> float:
    """Return the PFLOP of a training's epochs so far, without its teacher: two FLOP for each multiply-add.

    A backward pass counts as two forward passes, an attack step as two forward passes.

    Args:
        run: the result of ``Training.record``.
    """
    settings, epochs = Settings(**run["settings"]), len(run["epochs"])
    small = min(settings.small_epochs, epochs)
    gmacs = run["gmacs"] * (epochs - small)
    if small:
        gmacs += count(create(settings), settings.small_size)["gmacs"] * small
    images = settings.train_images or TRAIN_IMAGES - settings.holdout
    steps = settings.epoch_steps or images // settings.batch_size
    return 2e-6 * gmacs * steps * settings.batch_size * (3 + 2 * settings.attack_steps)
