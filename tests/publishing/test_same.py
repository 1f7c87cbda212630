"""A saved model computes the same as the original after any in-place change, or saving is refused."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import convstem
from convstem.errors import ArgumentError
from convstem.publishing.push import stage
from tests.support.assertions import randomise, relative_error

NANO = "vit_nano4_convstem"


def nano(**kwargs: Any) -> Any:
    return randomise(timm.create_model(NANO, num_classes=3, depth=2, stem_norm="batchnorm2d", **kwargs)).eval()


def other_host() -> Any:
    return randomise(torchvision.models.get_model("vit_nano_4_convstem", num_classes=3)).eval()


def each(kind: type[nn.Module], change: Callable[[Any], object]) -> Callable[[nn.Module], None]:
    def apply(model: nn.Module) -> None:
        changed = [change(module) for module in model.modules() if isinstance(module, kind)]
        assert changed, "the change must meet something"

    return apply


def own_forward(model: Any) -> None:
    forward = model.forward
    model.forward = lambda images: forward(images) * 1.001


def last_epsilon(model: Any) -> None:
    model.norm.eps = 1e-3


def another_activation(model: Any) -> None:
    model.blocks[0].mlp.act = nn.ReLU()


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "BatchNorm's epsilon": (
        each(nn.BatchNorm2d, lambda norm: setattr(norm, "eps", 1e-3)),
        r"patch_embed.backbone.0.bn is BatchNorm.*eps=0.001.*, and would be BatchNorm.*eps=1e-05",
    ),
    "one LayerNorm's epsilon": (last_epsilon, r"norm is LayerNorm.*eps=0.001.*, and would be LayerNorm.*eps=1e-06"),
    "an activation": (another_activation, r"blocks.0.mlp.act is ReLU\(\), and would be GELU"),
    "an approximation": (
        each(nn.GELU, lambda act: setattr(act, "approximate", "tanh")),
        r"mlp.act is GELU\(approximate='tanh'\), and would be GELU",
    ),
    "a forward of its own": (own_forward, "the model has a forward of its own"),
    "a hook": (lambda model: model.norm.register_forward_hook(lambda *args: args[-1] * 2), "norm has hooks"),
    "a scale": (lambda model: setattr(model.blocks[0].attn, "scale", 0.5), "would give other outputs"),
}


def staged(model: Any, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    stage(model, folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_unchanged_is_written(dtype: torch.dtype, tmp_path: Path) -> None:
    for index, make in enumerate((nano, other_host)):
        staged(make().to(dtype), tmp_path / str(index))
    model = nano().train()
    staged(model, tmp_path / "training")
    assert model.training  # the mode is restored


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_config_cannot_say_is_refused(name: str, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    model = nano()
    change(model)
    if name == "a scale":
        model.blocks[0].attn.fused_attn = False  # fused attention has its own scale
    with pytest.raises(ArgumentError, match=message):
        staged(model, tmp_path)


@pytest.mark.parametrize("name", ["BatchNorm's epsilon", "an approximation", "a forward of its own"])
def test_the_same_in_torchvision(name: str, tmp_path: Path) -> None:
    model = other_host()
    CHANGES[name][0](model)
    with pytest.raises(ArgumentError, match="the saved model would give other outputs"):
        staged(model, tmp_path)


def test_the_epsilon_of_all_layer_norms_is_said_by_the_config(tmp_path: Path) -> None:
    model = nano()
    each(nn.LayerNorm, lambda norm: setattr(norm, "eps", 1e-3))(model)
    folder = staged(model, tmp_path)
    assert json.loads((folder / "config.json").read_text())["model_args"]["norm_eps"] == 1e-3
    x = torch.rand(2, 3, 32, 32)
    plain = nano()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert relative_error(plain(x), model(x)) > 1e-6  # negative control
        assert relative_error(convstem.load(folder)(x), model(x)) < 1e-6


def test_a_transplant_of_a_model_with_another_epsilon(tmp_path: Path) -> None:
    norm = partial(nn.LayerNorm, eps=1e-3)
    source = randomise(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3, norm_layer=norm)).eval()
    model = convstem.transplant(source)
    folder = staged(model, tmp_path)
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(convstem.load(folder)(x), source(x)) < 1e-4


def test_a_model_that_cannot_be_copied(tmp_path: Path) -> None:
    model = nano()
    model.extra = iter([0])
    staged(model, tmp_path)
    another_activation(model)
    with pytest.raises(ArgumentError, match=r"blocks.0.mlp.act is ReLU"):
        staged(model, tmp_path)


def test_an_argument_that_no_config_holds(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="this model was built with act_layer=<class .*ReLU'>: use names"):
        staged(nano(act_layer=nn.ReLU), tmp_path)
    staged(nano(act_layer="relu"), tmp_path)
