"""Misspelt arguments name the right one, and a patchify checkpoint leads to transplant, in every kind of model."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

import convstem
from convstem.errors import ArgumentTypeError


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: timm.create_model("vit_ti16_convstem", stem_chanels=(8,)),
            "ConvStemVisionTransformer takes no argument 'stem_chanels'; did you mean stem_channels?",
        ),
        (lambda: timm.create_model("vit_conv_small", depht=1), "takes no argument 'depht'; did you mean depth?"),
        (
            lambda: timm.create_model("vit_s16_dinov3_convstem", stem_chanels=(8,)),
            "vit_s16_dinov3_convstem takes no argument 'stem_chanels'; did you mean stem_channels?",
        ),
        (
            lambda: torchvision.models.get_model("vit_ti_16_convstem", num_layer=1),
            "vit_ti_16_convstem takes no argument 'num_layer'; did you mean num_layers?",
        ),
        (
            lambda: torchvision.models.get_model("vit_ti_16_convstem", stem_channels=(8,)),
            "vit_ti_16_convstem takes no argument 'stem_channels'; it takes attention_dropout, conv_stem_configs",
        ),
        (lambda: convstem.load("vit_nano4_convstem", layuot="timm"), "no argument 'layuot'; it takes act_layer, attn_"),
    ],
)
def test_a_misspelt_argument(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(ArgumentTypeError, match=re.escape(message)):
        call()


PATCHIFY = "vit_tiny_patch16_224"
DINOV3 = "vit_small_patch16_dinov3"


def torchvision_patchify() -> Any:
    return torchvision.models.VisionTransformer(224, 16, 1, 3, 192, 768)


MODELS = {
    "ours": (lambda: timm.create_model("vit_ti16_convstem", depth=1), PATCHIFY),
    "on a trunk": (lambda: timm.create_model("vit_s16_dinov3_convstem", depth=1), DINOV3),
    "transplanted": (lambda: convstem.transplant(timm.create_model(PATCHIFY, depth=1)), PATCHIFY),
}


@pytest.mark.parametrize(("make", "source"), MODELS.values(), ids=MODELS)
def test_a_patchify_checkpoint_leads_to_transplant(make: Callable[..., Any], source: str, tmp_path: Path) -> None:
    model, state = make(), timm.create_model(source, depth=1).state_dict()
    assert_leads_to_transplant(model, state)
    torch.save(state, tmp_path / "patchify.pth")
    with pytest.raises(RuntimeError, match="embeds 16x16 patches directly.*convstem.transplant"):
        timm.models.load_checkpoint(model, str(tmp_path / "patchify.pth"))  # what checkpoint_path= does


@pytest.mark.parametrize("make", [
    lambda: torchvision.models.get_model("vit_ti_16_convstem", num_layers=1),
    lambda: convstem.transplant(torchvision_patchify(), pixel_range=([-2.0] * 3, [2.0] * 3)),
])  # fmt: skip
def test_torchvisions_patchify_checkpoint_leads_to_transplant(make: Callable[..., Any]) -> None:
    assert_leads_to_transplant(make(), torchvision_patchify().state_dict())


def assert_leads_to_transplant(model: Any, state: Any) -> None:
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="embeds 16x16 patches directly.*convstem.transplant") as caught:
            model.load_state_dict(state, strict=strict)
        assert str(caught.value).count("embeds 16x16 patches") == 1
    model.load_state_dict(model.state_dict())  # the right one is not refused
    pickle.loads(pickle.dumps(model)).load_state_dict(model.state_dict())
