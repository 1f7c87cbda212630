"""Models of patch 14 at patch 16: exact if every patch is resized by itself, with the same positions."""

from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import convstem
from convstem import StemSpec
from convstem.errors import ArgumentError
from convstem.stem.norms import init_stem
from convstem.transplanting.grid import enlarge_patches, needs_resizing
from tests.support.assertions import randomise, relative_error

TRUNKS = [
    ("vit_small_patch14_dinov2", {}),
    ("vit_small_patch14_reg4_dinov2", {}),
    ("vit_large_patch14_clip_224", {"embed_dim": 96, "num_heads": 3}),
    ("vit_so400m_patch14_siglip_224", {"embed_dim": 96, "num_heads": 3}),
    ("vit_base_patch14_reg1_tipsv2", {"embed_dim": 96, "num_heads": 3}),
    ("eva02_tiny_patch14_224", {}),
    ("vit_pe_core_large_patch14_336", {"embed_dim": 96, "num_heads": 3}),
]


def source_of(name: str, args: Mapping[str, object], size: tuple[int, int] = (42, 42)) -> nn.Module:
    return randomise(timm.create_model(name, depth=1, img_size=size, **args)).eval()


@pytest.mark.parametrize(("name", "args"), TRUNKS, ids=[name for name, _ in TRUNKS])
def test_patchwise_resized_images_give_the_same(name: str, args: Mapping[str, object]) -> None:
    source = source_of(name, args)
    twin = convstem.transplant(source)
    x = torch.randn(2, 3, 42, 42)
    with torch.no_grad():
        expected = source.forward_features(x)
        assert relative_error(twin.forward_features(enlarge_patches(x, 14)), expected) < 2e-5
        whole = nn.functional.interpolate(x, size=(48, 48), mode="bicubic")
        assert relative_error(twin.forward_features(whole), expected) > 1e-3  # negative control: not the same pixels
        init_stem(twin.patch_embed, "none")  # negative control: another stem
        assert relative_error(twin.forward_features(enlarge_patches(x, 14)), expected) > 1e-2


def test_what_a_resized_model_says_about_itself() -> None:
    source = source_of("vit_small_patch14_dinov2", {})
    before = {key: value.clone() for key, value in source.state_dict().items()}
    twin = convstem.transplant(source)
    assert twin.patch_embed.patch_size == (16, 16)
    assert twin.patch_embed.grid_size == source.patch_embed.grid_size == (3, 3)
    assert twin.pretrained_cfg["input_size"] == (3, 592, 592)  # 518 / 14 * 16
    assert {info["reduction"] for info in twin.feature_info} == {16}
    assert torch.equal(twin.pos_embed, source.pos_embed)
    assert twin.transplant_report.resized_from == 14
    assert twin.transplant_report.scope == (
        "every input whose patches of 14 pixels are resized one by one (approximate if an image is resized as a whole)"
    )
    assert f"The transplant is exact for {twin.transplant_report.scope}" in twin.transplant_report.summary()
    assert "resized from patches of 14 pixels by pseudo-inverse" in twin.transplant_report.summary()
    assert all(torch.equal(before[key], value) for key, value in source.state_dict().items())
    assert source.pretrained_cfg["input_size"] == (3, 518, 518)
    assert convstem.transplant(source_of("vit_tiny_patch16_224", {}, (32, 32))).transplant_report.resized_from is None


def test_grids_that_are_not_square() -> None:
    source = source_of("vit_small_patch14_dinov2", {}, (28, 56))
    twin = convstem.transplant(source)
    assert twin.patch_embed.grid_size == (2, 4)
    x = torch.randn(1, 3, 28, 56)
    with torch.no_grad():
        assert relative_error(twin(enlarge_patches(x, 14)), source(x)) < 2e-5


def test_torchvisions_patch_14() -> None:
    source = randomise(torchvision.models.VisionTransformer(42, 14, 1, 3, 96, 192, num_classes=5)).eval()
    twin: Any = convstem.transplant(source)
    assert (twin.image_size, twin.patch_size) == (48, 16)
    x = torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        assert relative_error(twin(enlarge_patches(x, 14)), source(x)) < 2e-5


def test_a_stem_of_the_models_own_patch_size_is_not_resized_for() -> None:
    source = source_of("vit_small_patch14_dinov2", {})
    own = convstem.transplant(source, StemSpec((12, 588), strides=(2, 7), kernel_sizes=(3, 13)))
    assert own.transplant_report.resized_from is None
    assert own.patch_embed.patch_size == (14, 14)
    narrow = convstem.transplant(source, (24, 96, 384, 768))
    assert narrow.transplant_report.resized_from == 14


def test_only_sizes_that_no_stem_has_are_resized() -> None:
    assert [patch for patch in (2, 4, 8, 12, 14, 16, 32) if needs_resizing(patch)] == [12, 14]
    with pytest.raises(ValueError, match="must equal patch_size 16"):
        convstem.transplant(source_of("vit_tiny_patch16_224", {}, (32, 32)), "vit_b32_convstem")


@pytest.mark.parametrize("patch", [6, 7, 10, 12, 24, 28])
def test_another_patch_size_than_14_is_not_changed_without_being_asked(patch: int) -> None:
    source = source_of("vit_tiny_patch16_224", {"patch_size": patch}, (4 * patch, 4 * patch))
    with pytest.raises(ArgumentError, match=rf"this model has patches of {patch}; only patches of 14 become 16"):
        convstem.transplant(source)
    twin: Any = convstem.transplant(source, stem="vit_ti16_convstem")
    assert twin.patch_embed.img_size == (64, 64)
    assert f"patches of {patch} pixels are resized one by one" in twin.transplant_report.scope


@pytest.mark.parametrize("patch", [2, 4, 8, 16, 32])
def test_powers_of_two_stay(patch: int) -> None:
    twin: Any = convstem.transplant(source_of("vit_tiny_patch16_224", {"patch_size": patch}, (64, 64)))
    assert twin.patch_embed.patch_size == (patch, patch)
    assert twin.transplant_report.scope == ("pixels in range" if patch == 32 else "every input")
