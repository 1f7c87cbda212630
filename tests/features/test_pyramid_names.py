"""The names NAME_pyramid: the same architecture and tags, but ``features_only=True`` is the feature pyramid."""

import json

import pytest
import timm
import torch
from click.testing import CliRunner

import convstem
from convstem.cli.main import main
from convstem.features import FeaturePyramid
from convstem.registry import catalog
from convstem.registry.catalog import named_trunks

NANO = "vit_nano4_convstem"


@pytest.mark.parametrize("name", [*catalog.models(), *named_trunks()])
def test_the_same_tags(name: str) -> None:
    own = timm.list_models(f"{name}.*", pretrained=True)
    assert timm.list_models(f"{name}_pyramid.*", pretrained=True) == [n.replace(name, f"{name}_pyramid") for n in own]
    assert timm.is_model_pretrained(f"{name}_pyramid") == timm.is_model_pretrained(name)


def test_the_same_model_but_for_features_only() -> None:
    model = timm.create_model(f"{NANO}_pyramid.cifar10", pretrained=True).eval()
    same = timm.create_model(f"{NANO}.cifar10", pretrained=True).eval()
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(model(x), same(x))
    assert model.pretrained_cfg["architecture"] == NANO  # goes into a Hub config
    assert isinstance(timm.create_model(f"{NANO}_pyramid", features_only=True), FeaturePyramid)
    plain = timm.create_model(f"{NANO}_pyramid", features_only=True, feature_cls="getter")
    assert not isinstance(plain, FeaturePyramid)
    assert not isinstance(timm.create_model(NANO, features_only=True), FeaturePyramid)


def test_listed_only_when_asked_for() -> None:
    assert not [name for name in convstem.list_models() if name.endswith("_pyramid")]
    assert not [name for name in convstem.list_models(pretrained=True) if "_pyramid" in name]
    assert f"{NANO}_pyramid" in convstem.list_models("*_pyramid")
    assert f"{NANO}_pyramid.cifar10" in convstem.list_models("*_pyramid", pretrained=True)
    printed = CliRunner().invoke(main, ["list", "--json", f"{NANO}_pyramid"]).output
    assert [row["name"] for row in json.loads(printed)] == [f"{NANO}_pyramid"]
