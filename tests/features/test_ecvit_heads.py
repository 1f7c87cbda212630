"""ECViT of every size under torchvision's detector and smp's Unet, unmodified: forward and a training step."""

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

import convstem
from convstem.registry import catalog

pytestmark = pytest.mark.full  # another library, whose import alone takes seconds

NAMES = [name for name in catalog.models() if name.startswith("ecvit")]


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_and_a_segmenter_train_on_every_size(name: str) -> None:
    body = convstem.feature_pyramid(timm.create_model(name), (1, 2, 3, 4))
    backbone: Any = torch.nn.Sequential(body, FeaturePyramidNetwork(body.out_channels, 16))
    backbone.out_channels = 16
    anchors = AnchorGenerator(((32,), (64,), (96,), (128,)), ((1.0,),) * 4)
    detector = FasterRCNN(backbone, 3, rpn_anchor_generator=anchors, min_size=64, max_size=96)
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 45.0]]), "labels": torch.tensor([1])}
    losses = detector([torch.rand(3, 60, 80)] * 2, [target] * 2)
    total = sum(losses.values())
    unet = smp.Unet(f"tu-{name}_pyramid", encoder_weights=None, in_channels=13, classes=2)
    masks = unet(torch.rand(2, 13, 64, 32))
    assert masks.shape == (2, 2, 64, 32)
    (total + masks.square().mean()).backward()
    for stem in (body.stem, unet.encoder.model.stem):
        assert next(stem.parameters()).grad.abs().sum() > 0
