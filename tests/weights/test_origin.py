"""A loaded model records where its weights came from."""

import timm

import convstem
from convstem.hub.config import LOADED, Step, steps


def test_the_weights_of_the_package_are_a_name_and_a_tag() -> None:
    assert steps(timm.create_model("vit_nano4_convstem").pretrained_cfg) == ()  # negative control
    model = timm.create_model("vit_nano4_convstem", pretrained=True)
    assert steps(model.pretrained_cfg) == (Step(LOADED, "vit_nano4_convstem.cifar10"),)
    assert steps(convstem.load("vit_nano4_convstem").pretrained_cfg) == steps(model.pretrained_cfg)
