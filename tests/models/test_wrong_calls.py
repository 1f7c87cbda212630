"""In every kind of model, errors for misspelt arguments name the right one, and a patchify checkpoint is carried."""

import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision

import convstem
from convstem.errors import ArgumentTypeError
from tests.support.assertions import randomise, relative_error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: timm.create_model("vit_ti16_convstem", stem_chanels=(8,)),
            "vit_ti16_convstem takes no argument 'stem_chanels'; did you mean stem_channels?",
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


def torchvision_patchify() -> Any:
    model = torchvision.models.VisionTransformer(224, 16, 1, 3, 192, 768)
    torch.nn.init.normal_(model.heads.head.weight)
    return model


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "transplanted": (
        lambda: convstem.transplant(timm.create_model(PATCHIFY, depth=1)),
        lambda: timm.create_model(PATCHIFY, depth=1),
    ),
    "torchvision": (
        lambda: torchvision.models.get_model("vit_ti_16_convstem", num_layers=1),
        torchvision_patchify,
    ),
    "torchvision, transplanted": (
        lambda: convstem.transplant(torchvision_patchify(), pixel_range=([-2.0] * 3, [2.0] * 3)),
        torchvision_patchify,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize(("make", "plain"), MODELS.values(), ids=MODELS)
def test_a_patchify_checkpoint_is_carried_into_the_stem(make: Callable[..., Any], plain: Callable[..., Any]) -> None:
    """The matrix of promises covers timm's names; these are the other models with one of our stems."""
    source, model = randomise(plain()).eval(), make().eval()
    again = pickle.loads(pickle.dumps(model))
    x = torch.rand(1, 3, 224, 224)
    assert relative_error(model(x), source(x)) > 1e-2  # negative control
    for twin, strict in ((model, True), (again, False)):
        with pytest.warns(UserWarning, match="has a patch embedding and no conv stem: it was transplanted"):
            twin.load_state_dict(source.state_dict(), strict=strict)
        assert relative_error(twin(x), source(x)) < 2e-5
    model.load_state_dict(again.state_dict())  # a checkpoint with a stem loads without a warning


@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (lambda: timm.create_model("vit_ti16_convstem", depth=1), "patch_embed.proj"),
        (lambda: torchvision.models.get_model("vit_ti_16_convstem", num_layers=1), "conv_proj"),
    ],
)
def test_a_patch_embedding_that_does_not_fit_leads_to_transplant(make: Callable[..., Any], prefix: str) -> None:
    model = make()
    with pytest.raises(RuntimeError, match=r"embeds 8x8 patches directly.*convstem.transplant.*\[192, 3, 16, 16\]"):
        model.load_state_dict({f"{prefix}.weight": torch.zeros(192, 3, 8, 8)}, strict=False)


def test_a_stem_is_never_replaced_by_a_stray_patch_embedding() -> None:
    model = timm.create_model("vit_ti16_convstem", depth=1)
    state = {**model.state_dict(), "patch_embed.proj.weight": torch.ones(192, 3, 16, 16)}
    before = model.patch_embed.backbone[0].conv.weight.clone()
    with pytest.raises(RuntimeError, match="Unexpected key.*patch_embed.proj.weight"):
        model.load_state_dict(state)
    assert torch.equal(model.patch_embed.backbone[0].conv.weight, before)
