"""One set of weights, two factories: tables are reversible and logits agree."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from torchvision.models.vision_transformer import ConvStemConfig

from convstem import convert
from convstem.layouts.recognise import recognise
from convstem.layouts.torchvision import TORCHVISION
from convstem.registry import catalog
from tests.support.assertions import largest_difference, randomise
from tests.support.everyday import mostly_in_ci

BOTH = [spec for spec in catalog.models().values() if spec.torchvision]
SMALLEST = [spec for spec in BOTH if spec.embed_dim <= 192]
SMALL = dict(img_size=64, depth=2, embed_dim=96, num_heads=3, num_classes=7)


def twins(spec: Any, dtype: torch.dtype) -> Any:
    """The same small architecture in both hosts: the row's own stem and a narrow trunk."""
    size = 2 * spec.patch_size
    model = timm.create_model(spec.name, **{**SMALL, "img_size": size}).to(dtype)
    twin = torchvision.models.get_model(
        spec.torchvision, image_size=size, num_layers=2, hidden_dim=96, num_heads=3,
        mlp_dim=int(96 * spec.mlp_ratio), num_classes=7,
    ).to(dtype)  # fmt: skip
    return randomise(model), randomise(twin, seed=2), torch.randn(2, 3, size, size, dtype=dtype)


@pytest.mark.parametrize("spec", mostly_in_ci(BOTH, SMALLEST), ids=lambda spec: spec.name)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_same_weights_same_logits(spec: Any, dtype: torch.dtype, bound: float) -> None:
    model, twin, x = twins(spec, dtype)
    assert largest_difference(model, twin, x) > 0.01  # negative control: different weights
    state = model.state_dict()
    converted = convert(state, source="timm", target="torchvision")
    twin.load_state_dict(converted)
    assert largest_difference(model, twin, x) < bound
    back = convert(converted, source="torchvision", target="timm")
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.full
@pytest.mark.parametrize("spec", BOTH, ids=lambda spec: spec.name)
def test_full_size_state_dicts_convert_both_ways(spec: Any) -> None:
    with torch.device("meta"):
        model = timm.create_model(spec.name, num_classes=spec.num_classes)
        twin = torchvision.models.get_model(spec.torchvision)
    converted = convert(model.state_dict(), source="timm", target="torchvision")
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in twin.state_dict().items()}
    back = convert(twin.state_dict(), source="torchvision", target="timm")
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_the_forum_stem_four_layers_of_64() -> None:
    configs = [ConvStemConfig(out_channels=64, kernel_size=3, stride=2)] * 4
    twin = torchvision.models.VisionTransformer(64, 16, 2, 3, 96, 384, num_classes=7, conv_stem_configs=configs)
    model = timm.create_model("vit_b16_convstem", stem_channels=(64, 64, 64, 64), stem_norm="batchnorm2d", **SMALL)
    x = torch.randn(2, 3, 64, 64)
    randomise(twin)
    assert largest_difference(model, twin, x) > 0.01
    model.load_state_dict(convert(twin.state_dict(), source="torchvision", target="timm"))
    assert largest_difference(model, twin, x) < 1e-5


def test_every_row_of_the_table_is_used() -> None:
    model = timm.create_model("vit_b16_convstem", stem_norm="batchnorm2d", **SMALL)
    keys = model.state_dict().keys() | {"patch_embed.proj.weight"}
    for row in TORCHVISION.rows:
        prefix = row.timm.split("{")[0]
        assert any(key.startswith(prefix) for key in keys), row


def test_the_layout_is_recognised() -> None:
    state = timm.create_model("vit_nano4_convstem").state_dict()
    assert recognise(state).layout.name == "timm"
    assert recognise(convert(state, source="timm", target="torchvision")).layout.name == "torchvision"
    assert recognise({"layer9.weight": 0}).layout is None


@pytest.mark.parametrize(
    ("keys", "source", "message"),
    [
        (["cls_token", "blocks.0.foo"], "timm", "1 of 2 keys are not in the layout 'timm': blocks.0.foo"),
        (["cls_token", "pos_embed"], "torchvision", "2 of 2 keys"),
        (["xcls_token"], "timm", "xcls_token"),
        (["cls_token"], "keras", "unknown layout 'keras'; the layouts are .*timm, torchvision"),
    ],
)
def test_keys_that_do_not_belong_are_named(keys: Any, source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(
            dict.fromkeys(keys, torch.zeros(1)),
            source=source,
            target="timm" if source != "timm" else "torchvision",
        )
