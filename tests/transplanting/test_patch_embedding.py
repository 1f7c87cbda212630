"""Valid patch embeddings and their transplants, in both hosts and with any torch defaults."""

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import convstem
from convstem import StemSpec
from convstem.errors import ArgumentError, UnsupportedModelError
from convstem.transplanting.surgery import put_stem, stem_for
from tests.support.assertions import randomise, relative_error


def vit_of(host: str, projection: Any = None) -> Any:
    """Return a host's small model, its projection replaced by a module or by a function of the old one."""
    if host == "timm":
        model = randomise(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=5, dynamic_img_size=True))
        owner, name = model.patch_embed, "proj"
    else:
        model = randomise(torchvision.models.VisionTransformer(32, 16, 1, 3, 192, 384, num_classes=5))
        owner, name = model, "conv_proj"
    if projection is not None:
        setattr(owner, name, projection if isinstance(projection, nn.Module) else projection(getattr(owner, name)))
    return model.eval()


class Scaled(nn.Conv2d):
    """Computes more than its weight alone would."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(3 * x)


class Named(nn.Conv2d):
    """A subclass that computes the plain convolution."""


def hooked(conv: Any) -> Any:
    conv.register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))
    return conv


def hooked_behind(conv: Any) -> Any:
    conv.register_forward_hook(lambda module, inputs, output: 3 * output)
    return conv


def bound(conv: Any) -> Any:
    conv.forward = lambda x: nn.Conv2d.forward(conv, 3 * x)
    return conv


PROJECTIONS = [
    (nn.Conv2d(3, 192, 16, 16, padding=8), r"padding \(8, 8\)"),
    (nn.Conv2d(3, 192, 32, 16, padding=8), r"kernel \(32, 32\) and stride \(16, 16\)"),
    (nn.Conv2d(3, 192, 8, 8, dilation=2), r"dilation \(2, 2\)"),
    (nn.Conv2d(3, 192, 16, 16, groups=3), "3 groups"),
    (nn.Conv2d(3, 192, 16, 16, padding="valid"), None),
    (Scaled(3, 192, 16, 16), "the forward of Scaled"),
    (Named(3, 192, 16, 16), None),
    (hooked, "hooks"),
    (hooked_behind, "hooks"),
    (bound, "a forward of its own, set on this Conv2d"),
    (nn.utils.parametrizations.weight_norm, "parametrizations"),
]


@pytest.mark.parametrize("host", ["timm", "torchvision"])
@pytest.mark.parametrize(("projection", "has"), PROJECTIONS)
def test_a_projection_that_does_more_is_refused(host: str, projection: Any, has: str | None) -> None:
    model = vit_of(host, copy.deepcopy(projection) if isinstance(projection, nn.Module) else projection)
    if has is None:
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert relative_error(convstem.transplant(model)(x), model(x)) < 5e-6
        return
    message = f"the patch embedding of VisionTransformer has {has}, which a stem would not have"
    with pytest.raises(UnsupportedModelError, match=message):
        convstem.transplant(model)


def test_hooks_on_the_patch_embedding_itself_are_refused() -> None:
    model = vit_of("timm")
    handle = model.patch_embed.register_forward_hook(lambda module, inputs, output: 3 * output)
    with pytest.raises(UnsupportedModelError, match="has hooks, which a stem"):
        convstem.transplant(model)
    handle.remove()
    convstem.transplant(model)


@pytest.mark.parametrize("host", ["timm", "torchvision"])
@pytest.mark.parametrize("frozen", [True, False])
def test_what_was_frozen_stays_frozen(host: str, frozen: bool) -> None:
    model = vit_of(host)
    place = model.patch_embed if host == "timm" else model.conv_proj
    place.requires_grad_(not frozen)
    twin = convstem.transplant(model)
    stem = twin.patch_embed if host == "timm" else twin.conv_proj
    assert {parameter.requires_grad for parameter in stem.parameters()} == {not frozen}
    assert all(parameter.requires_grad for parameter in (twin.blocks if host == "timm" else twin.encoder).parameters())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_model_without_input_channels() -> None:
    with pytest.raises(UnsupportedModelError, match="has no input channels, which"):
        convstem.transplant(timm.create_model("vit_tiny_patch16_224", depth=1, in_chans=0))


@pytest.mark.parametrize("host", ["timm", "torchvision"])
@pytest.mark.parametrize("around", ["meta", torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", ["none", "batchnorm2d", "frozen_bn"])
def test_default_device_and_type_change_nothing(host: str, around: Any, norm: str) -> None:
    model, stem = vit_of(host), StemSpec((24, 48, 192, 400), norm=norm)  # shifted, with spare channels
    expected = convstem.transplant(model, stem).state_dict()
    if isinstance(around, str):
        with torch.device(around):
            found = convstem.transplant(model, stem).state_dict()
    else:
        torch.set_default_dtype(around)
        try:
            found = convstem.transplant(model, stem).state_dict()
        finally:
            torch.set_default_dtype(torch.float32)
    again = convstem.transplant(model, stem).state_dict()
    for state in (found, again):
        assert list(state) == list(expected)
        for key, tensor in expected.items():
            assert (state[key].device, state[key].dtype) == (tensor.device, tensor.dtype)
            assert torch.equal(state[key], tensor)


@pytest.mark.parametrize("around", ["meta", "cpu"])
def test_a_resized_patch_on_another_default_device(around: str) -> None:
    model = randomise(timm.create_model("vit_small_patch14_dinov2", depth=1, img_size=42))
    with torch.device(around):
        found = convstem.transplant(model).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in convstem.transplant(model).state_dict().items())


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(ArgumentError, match="weight is on the meta device, so it has no values: load"):
        convstem.transplant(model)


def test_no_random_number_is_drawn() -> None:
    model, state = vit_of("timm"), torch.get_rng_state()
    convstem.transplant(model, (30, 100, 400, 800))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("host", ["timm", "torchvision"])
@pytest.mark.parametrize("norm", ["none", "batchnorm2d"])
def test_a_fresh_stem_is_put_in_place(host: str, norm: str) -> None:
    model = vit_of(host)
    spec = stem_for(model, norm=norm)
    new = put_stem(model, spec)
    assert new is (model.patch_embed if host == "timm" else model.conv_proj)
    assert not new.training
    weights = [m.weight for m in new.modules() if isinstance(m, nn.Conv2d)]
    fan_in, fan_out = weights[1][0].numel(), len(weights[1]) * 9
    bound = 2 / (fan_in if norm == "none" else fan_out)
    assert float(weights[1].detach().var()) == pytest.approx(bound, rel=0.1)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    if host == "timm":
        assert model.pretrained_cfg["first_conv"] == "patch_embed.backbone.0.conv"
        assert model._model_args["stem_norm"] == norm
