# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""ECViT by name: its sizes, its weights from whole detectors, and its maps for detectors and segmenters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor

import convstem
from convstem.errors import ConversionError
from convstem.hosts.describe import list_models
from convstem.hub.config import LOADED, steps
from convstem.publishing.card import card_of
from convstem.publishing.convert import convert_to_folder
from convstem.registry import catalog
from tests.support import reference_ecvit as ecvits
from tests.support.assertions import randomise, relative_error
from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.fixtures import cache, client, hub, server  # noqa: F401

NAMES = [name for name in catalog.models() if name.startswith("ecvit")]
TAGS = {"ecdet_coco": "ECDet_S", "ecseg_coco": "ECSeg_S", "ecpose_coco": "ECPose_S"}


def image(height: int = 64, width: int = 48, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, height, width)


@pytest.fixture(scope="module")
def backbone() -> ecvits.ECViT:
    model = ecvits.ECViT(192, 12).eval()
    randomise(model)
    model.fix_positions()
    return model


@pytest.fixture
def published(backbone: Any, hub_file: Callable[..., None]) -> Any:
    """The backbone, inside Hub cache files that stand for the three kinds of published models."""
    for kind, repository in zip(ecvits.KINDS, TAGS.values(), strict=True):
        hub_file(f"Intellindust/{repository}", ecvits.whole(kind, backbone).state_dict())
    return backbone


@torch.no_grad()
def error(model: Any, reference: Any, x: Tensor) -> float:
    return relative_error(model.eval()(x), reference(x))


@pytest.mark.parametrize(
    ("name", "parameters"),  # counted in EdgeCrafter's own module, built from its configs
    [("ecvit_t", 5_557_464), ("ecvit_tplus", 9_866_016), ("ecvit_s", 22_167_216), ("ecvit_splus", 29_254_320)],
)
def test_sizes_are_those_of_their_module(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert type(model) is timm.models.eva.Eva
    cfg = timm.data.resolve_data_config(model=model)
    assert (cfg["input_size"], cfg["crop_mode"], cfg["interpolation"]) == ((3, 640, 640), "squash", "bilinear")
    assert model.patch_embed.img_size == (640, 640)
    assert model.pretrained_cfg["paper_ids"] == "arXiv:2603.18739"


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_takes_the_backbone_out_of_a_whole_model(tag: str, published: Any) -> None:
    x = image()
    assert error(timm.create_model("ecvit_t"), published, x) > 0.1  # negative control
    model = timm.create_model(f"ecvit_t.{tag}", pretrained=True)
    assert error(model, published, x) < 1e-5
    assert not hasattr(model, "transplant_report")
    assert model.pretrained_cfg["license"] == "apache-2.0"
    (step,) = steps(model.pretrained_cfg)
    assert (step.what, step.repo_id) == (LOADED, f"Intellindust/{TAGS[tag]}")


def test_other_arguments_at_the_same_door(published: Any) -> None:
    x = image()
    loaded = convstem.load("ecvit_t", num_classes=3)
    assert loaded(x).shape == (1, 3)
    with torch.no_grad():
        features = loaded.forward_features(x)[:, 1:].mean(1)
        assert relative_error(features, published(x)) < 1e-5
    wide = timm.create_model("ecvit_t", pretrained=True, in_chans=13)
    assert wide(image(channels=13)).shape == (1, 192)
    maps = timm.create_model("ecvit_t_pyramid", pretrained=True, features_only=True).eval()
    assert maps.feature_info.channels() == [24, 48, 96, 192, 192]
    with torch.no_grad():
        assert [level.shape[1:] for level in maps(image(70, 50))] == [
            (24, 35, 25), (48, 18, 13), (96, 9, 7), (192, 5, 4), (192, 3, 2)]  # fmt: skip
        assert relative_error(maps(x)[3].mean((2, 3)), published(x)) < 1e-5


def test_a_key_that_nobody_knows_stops_the_load(backbone: Any, hub_file: Callable[..., None]) -> None:
    whole = ecvits.whole("ecdet", backbone).state_dict()
    hub_file("Intellindust/ECDet_S", {**whole, "decoder.new.weight": torch.zeros(1)})
    with pytest.raises(ConversionError, match="not in the layout 'edgecrafter': decoder.new.weight"):
        timm.create_model("ecvit_t.ecdet_coco", pretrained=True)
    hub_file(
        "Intellindust/ECDet_S", {key: value for key, value in whole.items() if "blocks.11.mlp.fc2.bias" not in key}
    )
    with pytest.raises(ConversionError, match=r"lacks .*blocks.11.mlp.fc2.bias|needs: .*blocks.11.mlp.fc2.bias"):
        timm.create_model("ecvit_t.ecdet_coco", pretrained=True)


@pytest.mark.full
def test_their_files_make_folders_and_come_back(backbone: Any, tmp_path: Path) -> None:
    (tmp_path / "ecvitt.safetensors").write_bytes(save(ecvits.whole("ecseg", backbone).state_dict()))
    done = convert_to_folder(tmp_path / "ecvitt.safetensors", tmp_path / "out", license="apache-2.0")
    assert done.architecture == "ecvit_t"
    assert error(convstem.load(tmp_path / "out"), backbone, image()) < 1e-5
    back = convert_to_folder(tmp_path / "out" / "model.safetensors", tmp_path / "back", target="edgecrafter")
    state = load_file(back.folder / "model.safetensors")
    assert state.keys() == backbone.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in backbone.state_dict().items())


def test_cards_say_what_was_not_checked() -> None:
    for name in NAMES:
        for tag in TAGS:
            text = card_of(f"{name}.{tag}")
            assert "has not seen the file itself" in text
            assert "Made from Intellindust/EC" in text
            assert "arXiv:2603.18739" in text
            assert "resize to 640 x 640 (bilinear), whatever the image's shape" in text
            assert "| conv | 3x3 | 2 |" in text
    assert len(list_models("ecvit", pretrained=True)) == len(NAMES) * len(TAGS) == 12


@pytest.mark.full
def test_from_a_hub(backbone: Any, hub: HubServer, client: Client, cache: str) -> None:
    hub.store.create("Intellindust/ECDet_S")
    files = {"model.safetensors": save(ecvits.whole("ecdet", backbone).state_dict()), "config.json": b"{}"}
    hub.store.commit("Intellindust/ECDet_S", "main", files)
    client(f"import convstem, timm, torch, huggingface_hub.constants as c\nc.HF_HUB_CACHE = {cache!r}")
    found = client("result = timm.create_model('ecvit_t.ecdet_coco', pretrained=True).cls_token.sum().item()")
    assert found.value == pytest.approx(backbone.register_token.sum().item()), found
    checked = client("result = [(c.name, c.ok) for c in convstem.verify('ecvit_t.ecdet_coco').checks]")
    assert checked.value == [["hashes", True], ["header", True], ["finite", True]]
    assert client("result = str(convstem.pull('ecvit_t.ecdet_coco'))").error is None
