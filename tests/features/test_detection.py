"""torchvision's detectors on the feature pyramid of both hosts' models: a training step and predictions."""

from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

import convstem

STRIDES = (4, 8, 16, 32)


def backbone(host: str) -> Any:
    """Return the four usual levels of a tiny model, with a feature pyramid network on top."""
    if host == "timm":
        model = timm.create_model("vit_ti16_convstem", depth=1, dynamic_img_size=True)
    else:
        model = torchvision.models.get_model("vit_ti_16_convstem", num_layers=1)
    body = convstem.feature_pyramid(model, out_indices=(1, 2, 3, 4))
    both = nn.Sequential(body, FeaturePyramidNetwork(body.out_channels, 32))
    both.out_channels = 32  # type: ignore[assignment]  # torchvision's detectors read this
    return both


def detector(kind: str, host: str) -> Any:
    sizes = {"min_size": 64, "max_size": 96}
    one = AnchorGenerator(tuple((8 * s,) for s in STRIDES), ((1.0,),) * 4)
    if kind == "FasterRCNN":
        return FasterRCNN(backbone(host), 3, rpn_anchor_generator=one, **sizes)
    kinds = {"RetinaNet": RetinaNet, "FCOS": FCOS}
    return kinds[kind](backbone(host), 3, anchor_generator=one, **sizes)


@pytest.mark.full
@pytest.mark.parametrize("host", ["timm", "torchvision"])
@pytest.mark.parametrize("kind", ["FasterRCNN", "RetinaNet", "FCOS"])
def test_a_detector_trains_and_predicts(kind: str, host: str) -> None:
    model = detector(kind, host)
    images = [torch.rand(3, 60, 80), torch.rand(3, 70, 50)]  # different sizes, as usual in detection
    boxes = torch.tensor([[5.0, 5.0, 40.0, 45.0]])
    losses = model.train()(images, [{"boxes": boxes, "labels": torch.tensor([1])}] * 2)
    total = sum(losses.values())
    assert isinstance(total, Tensor)
    assert torch.isfinite(total)
    total.backward()
    gradient = next(model.backbone[0].stem.parameters()).grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        found = model.eval()(images)
    assert [set(one) for one in found] == [{"boxes", "labels", "scores"}] * 2


def test_what_torchvision_asks_of_a_backbone() -> None:
    body = convstem.feature_pyramid(timm.create_model("vit_nano4_convstem"))
    maps = body(torch.rand(1, 3, 32, 32))
    assert isinstance(maps, OrderedDict)
    assert list(maps) == ["0", "1", "2", "3", "4"]
    assert body.out_channels == [m.shape[1] for m in maps.values()] == [64, 96, 96, 96, 96]


def test_a_plain_vit_has_no_maps_to_give() -> None:
    with pytest.raises(TypeError, match="has no conv stem, and a patch embedding has no maps inside"):
        convstem.feature_pyramid(timm.create_model("test_vit"))
