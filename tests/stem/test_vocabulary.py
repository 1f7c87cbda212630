"""Converting stems to and from torchvision's vocabulary, and overriding one."""

from typing import Any

import pytest
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig

from convstem import StemSpec
from convstem.registry import catalog
from convstem.registry.stem_spec import default_stem
from convstem.stem.vocabulary import as_stem_spec, from_torchvision, override_stem, to_torchvision


@pytest.mark.parametrize("name", [n for n, spec in catalog.models().items() if spec.torchvision])
def test_round_trip_through_torchvision(name: str) -> None:
    stem = catalog.models()[name].stem
    assert from_torchvision(to_torchvision(stem)) == stem


def test_norm_and_activation_classes_convert() -> None:
    configs = [
        ConvStemConfig(8, 3, 2, nn.BatchNorm2d, nn.GELU),
        ConvStemConfig(16, 5, 1, nn.BatchNorm2d, nn.GELU),
    ]
    stem = from_torchvision(configs)
    assert stem == StemSpec((8, 16), (2, 1), (3, 5), "batchnorm2d", "gelu")
    assert to_torchvision(stem) == configs


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (
            [ConvStemConfig(8, 3, 2, nn.InstanceNorm2d)],
            "norm_layer must be .* BatchNorm2d, FrozenBatchNorm2d, None; got InstanceNorm2d",
        ),
        ([ConvStemConfig(8, 3, 2, activation_layer=nn.Tanh)], "one of GELU, ReLU, SiLU; got Tanh"),
        (
            [ConvStemConfig(8, 4, 4)],
            r"this ConvStemConfig cannot be built: stem_kernel_sizes=\[4\], .*; use odd kernels",
        ),
        (
            [ConvStemConfig(8, 3, 2), ConvStemConfig(8, 3, 2, activation_layer=nn.GELU)],
            "the same in every ConvStemConfig .* got GELU, ReLU",
        ),
    ],
)
def test_what_has_no_counterpart_is_an_error(configs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_torchvision(configs)


def test_a_layernorm_stem_has_no_torchvision_form() -> None:
    with pytest.raises(ValueError, match="stem_norm='layernorm2d', stem_bias=True: build this model in timm"):
        to_torchvision(catalog.models()["vit_s16_cvst"].stem)


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        (StemSpec((8,), last_kernel_size=3, last_stride=2), "got stem_last_kernel_size=3, stem_last_stride=2: build"),
        (StemSpec((8,), (4,), (4,)), r"got stem_kernel_sizes=\[4\], and even ones are padded there: build"),
    ],
)
def test_convolutions_that_torchvision_has_not(stem: StemSpec, message: str) -> None:
    assert not stem.fits_torchvision
    with pytest.raises(ValueError, match=message):
        to_torchvision(stem)


def test_a_stem_is_a_name_a_spec_or_configs() -> None:
    spec = StemSpec((64, 64, 64, 64))
    assert as_stem_spec(spec) is spec
    assert as_stem_spec([ConvStemConfig(64, 3, 2)] * 4) == spec
    assert as_stem_spec((64, 64, 64, 64)) == as_stem_spec([64] * 4) == StemSpec((64, 64, 64, 64), norm="none")
    assert as_stem_spec("vitc_1gf").channels == (24, 48, 96, 192)
    with pytest.raises(TypeError, match="an architecture name, a convstem.StemSpec, the channels .* got 64"):
        as_stem_spec(64)


def test_override_keeps_or_resets_strides() -> None:
    stem = StemSpec((8, 8, 8), (2, 1, 2))
    assert override_stem(stem, 4, channels=[4, 4, 4]).strides == (2, 1, 2)
    assert override_stem(stem, 4, channels=[4, 4]).strides == (2, 2)
    with pytest.raises(ValueError, match=r"must equal patch_size 16; stem_channels \[8, 8, 8\]"):
        override_stem(stem, 16)
    last = StemSpec((8,), last_kernel_size=3, last_stride=2)
    assert override_stem(last, 8, channels=[4, 8]) == StemSpec((4, 8), last_kernel_size=3, last_stride=2)
    with pytest.raises(ValueError, match="stem_strides and stem_last_stride=2 must equal .* at least 3 stem_channels"):
        override_stem(last, 16)


@pytest.mark.parametrize(
    ("patch", "embed_dim", "in_chans", "channels"),
    [
        (16, 192, 3, (24, 96, 384, 384)),  # the last layer carries the embedding if it is smaller than the pixels
        (16, 768, 3, (24, 96, 384, 1536)),
        (16, 1024, 3, (24, 96, 384, 1536)),
        (16, 768, 1, (24, 96, 384, 1536)),  # the same as for RGB, so that RGB weights load
        (16, 768, 13, (104, 416, 1664, 1536)),
        (8, 384, 3, (24, 96, 384)),
        (32, 384, 3, (24, 48, 192, 768, 768)),
        (32, 384, 4, (32, 128, 512, 2048, 768)),
        (4, 96, 3, (24, 96)),
    ],
)
def test_default_stem(patch: int, embed_dim: int, in_chans: int, channels: tuple[int, ...]) -> None:
    assert default_stem(patch, embed_dim, in_chans) == StemSpec(channels, norm="none")


@pytest.mark.parametrize("name", [n for n, spec in catalog.models().items() if spec.trunk])
def test_the_transplant_family_follows_its_rule(name: str) -> None:
    spec = catalog.models()[name]
    for in_chans in (3, 5):
        assert spec.stem_for(in_chans) == default_stem(spec.patch_size, spec.embed_dim, in_chans)
    paper = catalog.models()["vitc_4gf"]
    assert paper.stem_for(5) == paper.stem


def test_no_default_stem_for_patch_14() -> None:
    with pytest.raises(ValueError, match="a power of two .*; got 14: choose one of these, or pass a stem"):
        default_stem(14, 768)
