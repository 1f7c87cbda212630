"""Pretrained weights by name: embedded, or transplanted from timm's files on loading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from convstem.registry import catalog, tables
from convstem.weights.entries import load_weights
from tests.support.assertions import largest_difference, randomise, relative_error

TI16 = "vit_ti16_convstem"
TIMM_TI16 = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture
def plain(hub_file: Callable[..., None]) -> Any:
    """timm's patchify ViT-Ti/16 with random weights, in place of the real file in the Hub cache."""
    model = randomise(timm.create_model("vit_tiny_patch16_224")).eval()
    hub_file(TIMM_TI16, model.state_dict())
    return model


def pixels(batch: int = 1, channels: int = 3, size: int = 224) -> Tensor:
    return 2 * torch.rand(batch, channels, size, size) - 1  # the whole pixel range for mean and std 0.5


@torch.no_grad()
def error(model: Any, reference: Any, x: Any) -> float:
    return relative_error(model.eval()(x), reference.eval()(x))


def test_timm_transplants_while_loading(plain: Any) -> None:
    x = pixels()
    assert error(timm.create_model(TI16), plain, x) > 0.1  # negative control
    model = timm.create_model(TI16, pretrained=True)
    assert error(model, plain, x) < 5e-6
    assert model.pretrained_cfg["tag"] == "augreg_in21k_ft_in1k"
    assert model.pretrained_cfg["license"] == "apache-2.0"


def test_torchvision_gives_the_same_logits(plain: Any) -> None:
    x = pixels()
    weights = torchvision.models.get_weight("ViT_Ti_16_ConvStem_Weights.DEFAULT")
    twin = torchvision.models.get_model("vit_ti_16_convstem", weights="DEFAULT")
    assert error(twin, plain, x) < 5e-6
    assert error(twin, timm.create_model(TI16, pretrained=True), x) < 1e-5
    assert weights.meta["categories"][0] == "tench"
    assert weights.meta["num_params"] == sum(p.numel() for p in twin.parameters())
    assert torch.equal(weights.transforms()(torch.full((3, 300, 300), 255, dtype=torch.uint8))[:, 0, 0], torch.ones(3))


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_input_channels_as_timm_adapts_them(plain: Any, in_chans: int) -> None:
    reference = timm.create_model("vit_tiny_patch16_224", in_chans=in_chans, pretrained=True)
    model = timm.create_model(TI16, in_chans=in_chans, pretrained=True)
    assert error(model, reference, pixels(channels=in_chans)) < 2e-5


def test_other_sizes_heads_and_features(plain: Any) -> None:
    reference = timm.create_model("vit_tiny_patch16_224", img_size=(96, 128), num_classes=0, pretrained=True)
    model = timm.create_model(TI16, img_size=(96, 128), num_classes=0, pretrained=True)
    x = pixels()[..., :96, :128]
    assert error(model, reference, x) < 1e-5
    assert timm.create_model(TI16, num_classes=5, pretrained=True).head.out_features == 5
    features = timm.create_model(TI16, features_only=True, pretrained=True)(pixels())
    assert [f.shape for f in features] == [(1, 192, 14, 14)] * 3
    scratch = timm.create_model("vit_tiny_patch16_224", features_only=True, pretrained=True)(pixels())
    assert [f.shape for f in scratch] == [f.shape for f in features]


def test_overlays_and_cache_dir(plain: Any, tmp_path: Path, hub_file: Callable[..., None]) -> None:
    other = randomise(timm.create_model("vit_tiny_patch16_224"), seed=5)
    save_file(other.state_dict(), tmp_path / "plain.safetensors")
    hub_file("me/mine", other.state_dict())
    hub_file(TIMM_TI16, other.state_dict(), cache=tmp_path / "cache")
    x = pixels()
    assert error(plain, other, x) > 0.1
    for kwargs in (
        {"pretrained_cfg_overlay": {"file": str(tmp_path / "plain.safetensors")}},
        {"pretrained_cfg_overlay": {"hf_hub_id": "me/mine"}},
        {"pretrained_cfg_overlay": {"state_dict": other.state_dict()}},
        {"cache_dir": tmp_path / "cache"},
    ):
        assert error(timm.create_model(TI16, pretrained=True, **kwargs), other, x) < 5e-6


def test_a_384_tag_builds_at_384(hub_file: Callable[..., None]) -> None:
    source = randomise(timm.create_model("vit_tiny_patch16_384", depth=1)).eval()
    hub_file("timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k", source.state_dict())
    model = timm.create_model(f"{TI16}.augreg_in21k_ft_in1k_384", pretrained=True, depth=1)
    assert model.patch_embed.img_size == (384, 384)
    assert error(model, source, pixels(size=384)) < 5e-6


def test_a_transplanted_checkpoint_is_never_transplanted_again(plain: Any, tmp_path: Path) -> None:
    model = timm.create_model(TI16, pretrained=True)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    state = model.state_dict()
    third = timm.create_model(TI16, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    assert largest_difference(third, model, pixels()) == 0


def test_cold_and_offline_says_so() -> None:
    with pytest.raises(Exception, match="(?i)offline|cannot find|connection|internet"):
        timm.create_model("vit_l16_convstem", pretrained=True, depth=1)


def test_licences_come_along() -> None:
    entries = catalog.weights()
    assert entries["vit_b16_convstem.mae"].license == "cc-by-nc-4.0"
    assert all(entry.license for entry in entries.values())
    assert timm.get_pretrained_cfg("vit_b16_convstem").hf_hub_id == "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"


def test_every_transplanted_tag_is_timms() -> None:
    transplanted = [e for e in catalog.weights().values() if e.transform == "transplant"]
    assert len(transplanted) == 44
    for entry in transplanted:
        cfg = timm.get_pretrained_cfg(entry.hf_hub_id.removeprefix("timm/"))
        assert cfg.hf_hub_id == entry.hf_hub_id
        fields = (
            cfg.num_classes,
            tuple(cfg.input_size),
            tuple(cfg.mean),
            tuple(cfg.std),
            cfg.crop_pct,
            cfg.interpolation,
        )
        assert fields == (
            entry.num_classes, entry.input_size, entry.mean, entry.std, entry.crop_pct, entry.interpolation,
        )  # fmt: skip
        assert (cfg.license or "unknown") == entry.license


@pytest.mark.parametrize("entry", [e for e in catalog.weights().values() if e.file], ids=lambda e: e.name)
def test_embedded_weights_load_and_a_flipped_byte_does_not(
    entry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_weights(entry)
    assert all(tensor.isfinite().all() for tensor in state.values())
    (tmp_path / entry.file).parent.mkdir(parents=True)
    content = bytearray((tables.data_dir("registry") / entry.file).read_bytes())
    content[-1] ^= 1
    (tmp_path / entry.file).write_bytes(content)
    monkeypatch.setattr(tables, "data_dir", lambda name: tmp_path)
    with pytest.raises(ValueError, match=r"is damaged: expected sha256 \w{64}, got \w{64}; reinstall"):
        load_weights(entry)
    (tmp_path / entry.file).unlink()
    with pytest.raises(FileNotFoundError, match="missing from the installation"):
        load_weights(entry)
