"""Input channels other than RGB: the default stem, unknown pixel ranges, RGB filters placed on bands."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models import get_model_args
from torch import nn

import convstem
from convstem.publishing.derived import transplant_to_folder
from convstem.stem.carried import normalised_range
from convstem.transplanting.patch_embedding import spread_over_bands
from tests.support.assertions import randomise, relative_error
from tests.support.everyday import mostly_in_ci

SENTINEL = {"in_chans": 13, "bands": (3, 2, 1)}


def small(**kwargs: object) -> nn.Module:
    return randomise(timm.create_model("vit_tiny_patch16_224", **{"depth": 1, "img_size": 32, **kwargs})).eval()


def embedding_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.get_submodule("patch_embed")(x)


@pytest.mark.parametrize("in_chans", mostly_in_ci([1, 2, 4, 5, 13], [1, 5]))
def test_any_number_of_channels_is_exact_for_every_input(in_chans: int) -> None:
    source = small(in_chans=in_chans)
    noise = 3 * torch.randn(2, in_chans, 32, 32)
    twin = convstem.transplant(source)
    assert twin.transplant_report.scope == "every input"
    assert relative_error(embedding_of(twin, noise), embedding_of(source, noise)) < 2e-6
    nn.init.normal_(twin.patch_embed.backbone[0].conv.weight)  # negative control
    assert relative_error(embedding_of(twin, noise), embedding_of(source, noise)) > 0.1


def test_bands_keep_the_rgb_function_and_ignore_the_others() -> None:
    source = small()
    twin = convstem.transplant(source, **SENTINEL)
    x = 3 * torch.randn(2, 13, 32, 32)
    with torch.no_grad():
        expected = source(x[:, [3, 2, 1]])
        assert relative_error(twin(x), expected) < 5e-6
        assert relative_error(twin(x), source(x[:, [1, 2, 3]])) > 1e-2  # negative control: the order counts
    assert twin.in_chans == twin.pretrained_cfg["input_size"][0] == 13
    assert source.patch_embed.proj.weight.shape[1] == 3
    twin.train()
    twin(x).square().mean().backward()
    new = twin.patch_embed.backbone[-1].conv.weight.grad
    assert new is not None
    assert new.isfinite().all()


STEMS = {
    "ecvit": lambda: timm.create_model("ecvit_t", depth=1, img_size=32),
    "default stem": lambda: timm.create_model("vit_ti16_convstem", depth=1, img_size=32),
    "transplanted": lambda: convstem.transplant(small()),
    "frozen norm": lambda: timm.create_model("vitc_1gf", depth=1, img_size=32, stem_norm="frozen_bn"),
    "torchvision": lambda: torchvision.models.get_model("vit_ti_16_convstem", num_layers=1, image_size=32),
}


@pytest.mark.parametrize("name", STEMS)
def test_a_trained_stem_takes_more_bands_and_keeps_its_function(name: str) -> None:
    source = randomise(STEMS[name]().double()).eval()
    wider = convstem.transplant(source, **SENTINEL)
    x = 3 * torch.randn(2, 13, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = source(x[:, [3, 2, 1]])
        assert relative_error(wider(x), expected) < 1e-14
        assert relative_error(wider(x), source(x[:, [1, 2, 3]])) > 1e-3  # negative control: the order counts
    assert source(x[:, :3]).shape == expected.shape  # the source is unchanged
    wider.train()
    wider(x).square().mean().backward()
    gradient = convstem_first(wider).weight.grad
    assert gradient.shape[1] == 13
    assert gradient[:, 12].abs().max() > 0  # the new bands learn


def convstem_first(model: nn.Module) -> nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.full
def test_a_wider_stem_is_saved_and_loaded(tmp_path: Path) -> None:
    source = randomise(timm.create_model("ecvit_t", depth=1)).eval()
    timm.models.save_for_hf(source, tmp_path / "rgb", safe_serialization=True)
    done = transplant_to_folder(tmp_path / "rgb", tmp_path / "wide", **SENTINEL)
    assert done.measured_error < 1e-6
    assert done.report.summary() == "The transplant is exact for every input, up to rounding."
    x = torch.randn(1, 13, 64, 32)
    with torch.no_grad():
        assert relative_error(convstem.load(tmp_path / "wide")(x), source(x[:, [3, 2, 1]])) < 1e-5
    card = (tmp_path / "wide" / "README.md").read_text()
    assert "with 13 input channels: its filters are on bands 3, 2, 1, counted from 0, and zero on the others" in card
    assert "was converted into a convolutional stem" not in card


def test_a_stem_is_not_replaced_by_another() -> None:
    model = timm.create_model("vit_nano4_convstem", depth=1)
    for arguments in ({}, {"stem": (24, 96), **SENTINEL}):
        with pytest.raises(TypeError, match="already has a conv stem; .* more input channels, by in_chans= and bands="):
            convstem.transplant(model, **arguments)
    with pytest.raises(ValueError, match="in_chans and bands belong together; got in_chans=13, bands=None"):
        convstem.transplant(model, in_chans=13)


@pytest.mark.full
def test_new_bands_learn() -> None:
    twin = convstem.transplant(small(), **SENTINEL).train()
    optimiser = torch.optim.SGD(twin.parameters(), lr=1e-2)
    x = torch.randn(4, 13, 32, 32)
    other = x.clone()
    other[:, 7] += 1
    assert relative_error(embedding_of(twin.eval(), other), embedding_of(twin, x)) < 1e-6
    for _ in range(2):
        optimiser.zero_grad()
        twin(x).square().mean().backward()
        optimiser.step()
    assert relative_error(embedding_of(twin.eval(), other), embedding_of(twin, x)) > 1e-6


@pytest.mark.full
def test_bands_in_torchvision() -> None:
    source = randomise(torchvision.models.VisionTransformer(32, 16, 1, 3, 192, 384, num_classes=7)).eval()
    twin = convstem.transplant(source, **SENTINEL)
    x = torch.randn(2, 13, 32, 32)
    with torch.no_grad():
        assert relative_error(twin(x), source(x[:, [3, 2, 1]])) < 5e-6


@pytest.mark.full
def test_bands_are_saved_and_loaded(tmp_path: Path) -> None:
    twin = convstem.transplant(small(), **SENTINEL)
    timm.models.save_for_hf(twin, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 13, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), twin(x))


def test_fewer_bands_than_the_source() -> None:
    weight = torch.randn(4, 3, 2, 2)
    assert torch.equal(spread_over_bands(weight, 3, (0, 1, 2)), weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_chans": 13}, "in_chans and bands belong together; got in_chans=13, bands=None"),
        ({"bands": (3, 2, 1)}, "got in_chans=None, bands="),
        ({"in_chans": 13, "bands": (3, 2, 13)}, r"3 different bands from 0 to 12.*got \[3, 2, 13\]"),
        ({"in_chans": 13, "bands": (3, 2, -1)}, r"got \[3, 2, -1\]"),
        ({"in_chans": 13, "bands": (3, 2, 2)}, r"3 different bands.*got \[3, 2, 2\]"),
        ({"in_chans": 13, "bands": "321"}, r"a whole number, and bands a list of whole numbers; got '3'"),
        ({"in_chans": 13, "bands": (3.0, 2.0, 1.0)}, r"whole numbers; got 3\.0"),
        ({"in_chans": "13", "bands": (3, 2, 1)}, r"whole numbers; got '13'"),
        ({"in_chans": 2, "bands": (1, 0, 2)}, "in_chans must be at least 3, as many as the source has; got 2"),
        ({"in_chans": 13, "bands": 3}, "belong together; got in_chans=13, bands=3"),
        ({"in_chans": 13, "bands": (3, 2)}, r"one for each input channel of the source; got \[3, 2\]"),
    ],
)
def test_wrong_bands(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(convstem.ConvStemError, match=message):
        convstem.transplant(small(), **arguments)


def test_a_range_that_nobody_knows_is_asked_for_where_it_matters() -> None:
    source, lean = small(in_chans=4), (16, 64, 256, 1024)
    with pytest.raises(ValueError, match=r"range of the 4 input channels is unknown.*pass pixel_range=\(low, high\)"):
        convstem.transplant(source, stem=lean)
    twin = convstem.transplant(source, stem=lean, pixel_range=([-1.0] * 4, [1.0] * 4))
    x = 2 * torch.rand(2, 4, 32, 32) - 1
    assert twin.transplant_report.scope == "pixels in range"
    assert relative_error(embedding_of(twin, x), embedding_of(source, x)) < 2e-6


def test_a_config_of_the_result_states_its_channels() -> None:
    twin = convstem.transplant(small(), in_chans=5, bands=(0, 1, 2))
    assert get_model_args(twin)["in_chans"] == twin.pretrained_cfg["input_size"][0] == 5


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((float("nan"),), (1.0,)), ((0, 0), (1,))]
)
def test_wrong_mean_and_std(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    assert normalised_range((0.5,), (0.25,), 1) == ([-2.0], [2.0])
    assert normalised_range((0.5,), (0.25,), 2) is None
    with pytest.raises(ValueError, match="one finite value for each channel, and std positive ones; got mean"):
        normalised_range(mean, std, 1)


@pytest.mark.full
@pytest.mark.parametrize("in_chans", [1, 4, 13])
def test_names_adapt_by_timms_rule_and_say_so(in_chans: int, tmp_path: Path, caplog: Any) -> None:
    """The reference is the plain ViT with the same checkpoint and argument."""
    args = {"depth": 1, "img_size": 32}
    file = tmp_path / "patchify.pth"
    torch.save(small().state_dict(), file)
    overlay = {"file": str(file), "custom_load": False, "input_size": (3, 32, 32)}
    load = {"pretrained": True, "pretrained_cfg_overlay": overlay, "in_chans": in_chans, **args}
    plain = timm.create_model("vit_tiny_patch16_224", **load).eval()
    with caplog.at_level(logging.INFO):
        ours = timm.create_model("vit_ti16_convstem", **load).eval()
    x = torch.randn(2, in_chans, 32, 32)
    with torch.no_grad():
        assert relative_error(ours(x), plain(x)) < 5e-6
    assert f"from 3 to {in_chans} input channels by timm's rule" in caplog.text
    assert "source channels" not in caplog.text
    assert ours.pretrained_cfg["input_size"] == (3, 32, 32)
