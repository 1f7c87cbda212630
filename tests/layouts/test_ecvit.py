"""ECViT's files: every key of a whole model is accounted for, and similar files are refused."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from convstem import convert
from convstem.errors import ConversionError
from convstem.layouts.recognise import LAYOUTS
from convstem.layouts.research import DROPS
from convstem.layouts.rows import match
from tests.support import reference_ecvit as ecvits
from tests.support.assertions import randomise, relative_error
from tests.support.layout_cases import whole_ecvit


@pytest.fixture(scope="module")
def backbone() -> ecvits.ECViT:
    model = ecvits.ECViT().double().eval()
    randomise(model)
    model.fix_positions()
    return model


@pytest.mark.parametrize("kind", ecvits.KINDS)
def test_every_other_key_of_a_whole_model_is_left_out_with_its_reason(kind: str, backbone: Any) -> None:
    state = whole_ecvit(backbone.state_dict(), kind)
    converted = convert(state)
    assert (converted.architecture, converted.source) == ("ecvit_t", "edgecrafter")
    outside = {key for key in state if not key.startswith("backbone.backbone.")}
    assert converted.report.dropped.keys() == outside
    assert len({part.split(".")[0] for part in outside}) == 3  # encoder, decoder and the backbone's projector
    assert len(set(converted.report.dropped.values())) == 3
    mapped = {key for keys in converted.report.mapped.values() for key in keys}
    assert mapped == state.keys() - outside


def test_no_reason_is_there_for_nothing() -> None:
    states = [whole_ecvit({}, kind) for kind in ecvits.KINDS] + [
        {"projector.0.conv.weight": 0, "projector.0.norm.bias": 0}
    ]
    keys = {key for state in states for key in state}
    unused = {drop.keys for drop in DROPS if not any(match(drop.keys, key) is not None for key in keys)}
    folded = {keys for keys in unused if "conv_bn_fused" in keys or keys.endswith("bottlenecks.{w}.conv.{p}")}
    assert unused == folded


@pytest.mark.parametrize("key", ["encoder.extra.weight", "decoder.decoder.layers.0.norm3.weight", "backbone.neck.bias"])
def test_an_unknown_key_of_a_whole_model_is_an_error(key: str, backbone: Any) -> None:
    state = whole_ecvit(backbone.state_dict()) | {key: torch.zeros(1)}
    with pytest.raises(ConversionError, match=f"1 of {len(state)} keys are not in the layout 'edgecrafter': "):
        convert(state)


def test_a_deployed_model_is_read_as_a_stem_without_norm(backbone: Any) -> None:
    state, x = backbone.state_dict(), torch.randn(1, 3, 48, 32, dtype=torch.float64)
    for index, layer in enumerate(backbone.patch_embed.convs):
        start = f"patch_embed.convs.{index}."
        scale = layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt()
        for key in [key for key in state if key.startswith(start)]:
            del state[key]
        state[f"{start}conv_bn_fused.weight"] = (layer.conv.weight * scale[:, None, None, None]).detach()
        state[f"{start}conv_bn_fused.bias"] = (layer.norm.bias - layer.norm.running_mean * scale).detach()
    converted = convert(state)
    assert converted.model_args["stem_norm"] == "none"
    model = randomise(timm.create_model("ecvit_t", **converted.model_args).double().eval(), seed=3)
    with torch.no_grad():
        assert relative_error(model(x), backbone(x)) > 0.01  # negative control
        model.load_state_dict(converted)
        assert relative_error(model(x), backbone(x)) < 1e-9
    with pytest.raises(ConversionError, match="edgecrafter cannot express this model: its stem has another norm"):
        convert(converted, "timm", "edgecrafter")


def test_periods_of_another_base_are_refused(backbone: Any) -> None:
    state = backbone.state_dict()
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    assert convert(half).architecture == "ecvit_t"  # rounded periods still match the base
    for periods in (2 * state["rope_embed.periods"], state["rope_embed.periods"][:8]):
        with pytest.raises(ConversionError, match="periods"):
            convert({**state, "rope_embed.periods": periods})


@pytest.mark.parametrize("name", ["pos_embed", "norm.weight"])
def test_a_vit_that_lacks_something_is_no_ecvit(name: str) -> None:
    state = timm.create_model("vit_nano4_convstem", depth=1).state_dict()
    del state[name]
    with pytest.raises(ConversionError, match=f"{name}"):
        convert(state)
    state = timm.create_model("vit_nano4_convstem", depth=1, num_classes=0).state_dict()
    for key in ("pos_embed", "norm.weight", "norm.bias"):
        del state[key]
    with pytest.raises(ConversionError, match="lacks pos_embed"):
        convert(state)


def test_other_layouts_have_no_place_for_it_and_say_so(backbone: Any) -> None:
    state = convert(backbone.state_dict()).state_dict
    for name, layout in LAYOUTS.items():
        if layout.invertible and name not in ("edgecrafter", "timm"):
            with pytest.raises(ConversionError, match=f"{name} cannot express this model: its positions are rotary"):
                convert(state, "timm", name)
    with pytest.raises(ConversionError, match="edgecrafter cannot express this model: its heads are not 64 wide"):
        convert(state, "timm", "edgecrafter", num_heads=4)
    plain = timm.create_model("vit_nano4_convstem").state_dict()
    with pytest.raises(ConversionError, match="edgecrafter cannot express this model"):
        convert(plain, "timm", "edgecrafter")
