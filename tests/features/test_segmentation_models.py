"""segmentation_models_pytorch, unmodified, on our names. Control: it refuses the plain ViT."""

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

import convstem
from convstem.features import FeaturePyramid
from tests.support.assertions import randomise

pytestmark = pytest.mark.full  # other people's libraries, whose imports alone take seconds

PLAIN = "tu-vit_tiny_patch16_224"
ENCODER = "tu-vit_ti16_convstem_pyramid"

# Decoder and its arguments. smp's FPN upsamples its second-finest map by a factor that fits only depth 5.
DECODERS: list[tuple[str, dict[str, Any]]] = [
    *(("Unet", {"encoder_depth": depth, "decoder_channels": (64, 32, 32, 16, 16)[-depth:]}) for depth in (3, 4, 5)),
    *(
        ("UnetPlusPlus", {"encoder_depth": depth, "decoder_channels": (64, 32, 32, 16, 16)[-depth:]})
        for depth in (3, 5)
    ),
    *(("MAnet", {"encoder_depth": depth, "decoder_channels": (64, 32, 32, 16, 16)[-depth:]}) for depth in (3, 5)),
    *(("Linknet", {"encoder_depth": depth}) for depth in (3, 4, 5)),
    *(("FPN", {"encoder_depth": depth, "upsampling": 2 ** (depth - 3)}) for depth in (3, 4, 5)),
    *(("UPerNet", {"encoder_depth": depth}) for depth in (3, 4, 5)),
    *(("Segformer", {"encoder_depth": depth}) for depth in (3, 4, 5)),
    *(("DeepLabV3Plus", {"encoder_depth": depth}) for depth in (3, 4, 5)),
    ("PAN", {}),
    ("PSPNet", {"encoder_depth": 3}),
    ("DeepLabV3", {"encoder_output_stride": 16}),
]


def build(decoder: str, name: str = ENCODER, **kwargs: Any) -> Any:
    return getattr(smp, decoder)(name, encoder_weights=None, classes=2, **kwargs)


@pytest.mark.parametrize(("decoder", "kwargs"), DECODERS)
def test_a_decoder_runs_and_trains(decoder: str, kwargs: dict[str, Any]) -> None:
    model = build(decoder, **kwargs)
    assert isinstance(model.encoder.model, FeaturePyramid)
    height, width = (128, 160) if decoder == "PAN" else (64, 96)  # PAN pools its coarsest map three times
    masks = model(torch.rand(2, 3, height, width))  # not the 224 pixels of the pretrained weights
    assert masks.shape == (2, 2, height, width)
    masks.square().mean().backward()
    first = next(model.encoder.model.stem.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet", "Segformer"])
def test_the_plain_vit_is_refused(decoder: str) -> None:
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
        build(decoder, PLAIN)


def test_defaults_are_enough() -> None:
    model = smp.Unet("tu-vit_nano4_convstem_pyramid", encoder_weights=None).eval()
    assert model.encoder.out_channels == [3, 64, 96, 96, 96, 96]
    assert model(torch.rand(1, 3, 32, 64)).shape == (1, 1, 32, 64)


def test_pretrained_weights_and_other_channels() -> None:
    name = "tu-vit_nano4_convstem_pyramid.cifar10"
    model = smp.FPN(name, encoder_weights=True).eval()
    expected = timm.create_model("vit_nano4_convstem.cifar10", pretrained=True).state_dict()
    first = next(iter(model.encoder.model.stem.state_dict().values()))
    fresh = next(iter(smp.FPN(name, encoder_weights=None).encoder.model.stem.state_dict().values()))
    assert not torch.equal(first, fresh)  # negative control
    assert torch.equal(first, next(v for k, v in expected.items() if k.endswith("backbone.0.conv.weight")))
    assert smp.FPN(name, encoder_weights=True, in_channels=1)(torch.rand(2, 1, 32, 32)).shape == (2, 1, 32, 32)


def test_dpt_takes_plain_features_as_before() -> None:
    for name in ("tu-vit_tiny_patch16_224", "tu-vit_ti16_convstem"):
        model = smp.DPT(name, encoder_weights=None, encoder_depth=4, dynamic_img_size=True).eval()
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_dilated_decoders_name_what_cannot_work() -> None:
    # A ViT computes at its patch's stride, so it cannot give a decoder a finer one.
    with pytest.raises(ValueError, match="output_stride must be one of 16, 32 for this trunk.*; got 8"):
        build("DeepLabV3", encoder_output_stride=8)


def test_the_stem_of_a_segmentation_model_is_frozen() -> None:
    model: Any = build("Unet")
    convstem.freeze_stem(model)
    stem = {id(p) for p in model.encoder.model.stem.parameters()}
    assert {id(p) for p in model.parameters() if not p.requires_grad} == stem
    assert isinstance(model, nn.Module)


def test_own_weights_of_a_whole_model() -> None:
    own = randomise(timm.create_model("vit_nano4_convstem", num_classes=3))
    model = smp.Unet("tu-vit_nano4_convstem_pyramid", encoder_weights=None)
    stem = own.state_dict()["patch_embed.backbone.0.conv.weight"]
    assert not torch.equal(model.encoder.model.stem.state_dict()["0.conv.weight"], stem)  # negative control
    found = model.encoder.model.load_state_dict(own.state_dict(), strict=False)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert torch.equal(model.encoder.model.stem.state_dict()["0.conv.weight"], stem)
