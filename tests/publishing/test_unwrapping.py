"""Wrappers from training are removed before a push; errors name anything that is no model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import convstem
from convstem.errors import UnsupportedModelError
from convstem.publishing.push import stage, unwrapped
from tests.support.assertions import randomise


def nano(**kwargs: Any) -> Any:
    return randomise(timm.create_model("vit_nano4_convstem", num_classes=3, depth=2, **kwargs))


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.compile": torch.compile,
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "ModelEma": ModelEma,
    "ModelEmaV2": ModelEmaV2,
    "ModelEmaV3": ModelEmaV3,
    "several": lambda model: torch.compile(nn.DataParallel(AveragedModel(model))),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_taken_off(name: str, tmp_path: Path) -> None:
    model = nano()
    stage(WRAPPERS[name](model), tmp_path)
    assert torch.equal(convstem.load(tmp_path).head.weight, model.head.weight)


def test_of_torchvision_too() -> None:
    model = torchvision.models.get_model("vit_nano_4_convstem")
    assert unwrapped(nn.DataParallel(model)) is model


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nano()


PARTS: dict[str, tuple[Callable[[], Any], str]] = {
    "pyramid": (
        lambda: nano(features_only=True, feature_cls="pyramid"),
        "a FeaturePyramid holds only the part of a model that its maps need: push the whole",
    ),
    "pyramid for torchvision": (
        lambda: convstem.feature_pyramid(nano()),
        "a FeaturePyramidDict holds only the part of a model",
    ),
    "timm's features": (
        lambda: nano(features_only=True, out_indices=1),
        "a FeatureGetterNet holds only the part of a model",
    ),
    "a task": (Task, "got a Task; it has one inside: push its .network"),
    "a sequence": (
        lambda: nn.Sequential(nn.Identity(), nano()),
        "got a Sequential; it has one inside: push its .1",
    ),
    "no model": (lambda: nn.Linear(2, 2), "push takes a model of timm or torchvision; got a Linear$"),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_is_no_whole_model_is_named(name: str, tmp_path: Path) -> None:
    make, message = PARTS[name]
    with pytest.raises(UnsupportedModelError, match=message):
        stage(make(), tmp_path)
