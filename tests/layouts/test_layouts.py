"""Every layout, as users have it, is recognised and converted with equal outputs, and back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from convstem import convert, fold
from convstem.errors import ArgumentTypeError, ConversionError
from convstem.layouts.conversion import Converted
from convstem.layouts.engine import LACKS
from convstem.layouts.recognise import LAYOUTS
from convstem.layouts.unwrap import unwrap
from tests.support.assertions import randomise, relative_error
from tests.support.everyday import mostly_in_ci
from tests.support.layout_cases import CASES, TRANSFORMERS, Case, file_keys
from tests.support.versions import NEEDS_TRANSFORMERS_5, TRANSFORMERS_5


def build(converted: Converted) -> nn.Module:
    """Return the timm model that the conversion names, with random weights."""
    model = timm.create_model(converted.architecture, **converted.model_args)
    if converted.patchify:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = converted.norm_eps
    return randomise(model.double().eval(), seed=3)


def images(case: Case) -> torch.Tensor:
    return torch.randn(2, 3, case.image, case.image, dtype=torch.float64)


def check_outputs(case: Case, reference: nn.Module, converted: Converted) -> None:
    model, x = build(converted), images(case)
    pixels = x
    if case.name == "robustbench S":
        mean, std = (torch.tensor(converted.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
        pixels = (x - mean) / std  # the wrapper's normalisation is preprocessing, not part of the model
    with torch.no_grad():
        expected = case.reference(reference, x)
        assert relative_error(model(pixels), expected) > 0.01  # negative control: random weights
        model.load_state_dict(converted)
        assert relative_error(model(pixels), expected) < (1e-6 if case.name == "robustbench S" else 1e-9)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_users_hold_comes_home(case: Case) -> None:
    reference = case.build()
    converted = convert(case.hold(reference.state_dict()), use_ema=case.use_ema, **case.facts)
    assert converted.source == case.layout
    check_outputs(case, reference, converted)


@pytest.mark.skipif(not TRANSFORMERS_5, reason=NEEDS_TRANSFORMERS_5)
@pytest.mark.parametrize("case", TRANSFORMERS, ids=lambda case: case.name)
def test_the_keys_of_transformers_files_come_home_too(case: Case, tmp_path: Path) -> None:
    reference = case.build()
    state = file_keys(reference, tmp_path)
    if case.layout in ("transformers_vit", "transformers_dinov2", "transformers_dinov2_registers"):
        assert state.keys() != reference.state_dict().keys()  # otherwise the test would be vacuous
    check_outputs(case, reference, convert(state, **case.facts))


def same(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_round_trips_are_bit_exact(case: Case) -> None:
    if case in TRANSFORMERS and not TRANSFORMERS_5:
        pytest.skip(NEEDS_TRANSFORMERS_5)
    held = case.hold(case.build().state_dict())
    inward = convert(held, use_ema=case.use_ema, **case.facts)
    if not LAYOUTS[case.layout].invertible:
        with pytest.raises(ValueError, match=r"can only be read; the targets are .*torchvision"):
            convert(inward.state_dict, "timm", case.layout)
        return
    if case.name == "transformers DINOv2 gated":
        with pytest.raises(ValueError, match="cannot express this model: its MLP is gated"):
            convert(inward.state_dict, "timm", case.layout)
        return
    outward = convert(inward.state_dict, "timm", case.layout)
    flat = unwrap(held, case.use_ema).state_dict
    kept = {key: tensor for key, tensor in flat.items() if key not in inward.report.dropped}
    kept = {key.removeprefix("backbone.").removeprefix("backbone."): tensor for key, tensor in kept.items()}
    stripped = {
        key.split(".", 1)[1] if key.startswith(("vit.", "vision_model.")) else key: t for key, t in outward.items()
    }
    assert {k: v.shape for k, v in stripped.items()} == {k: v.shape for k, v in kept.items()}
    assert all(torch.equal(stripped[key], kept[key]) for key in kept)
    assert same(convert(outward.state_dict, case.layout, **case.facts).state_dict, inward.state_dict)


def test_both_sets_of_weights_are_named() -> None:
    by_name = {case.name: case for case in CASES}
    for name, weights in (("pycls averaged", "averaged"), ("pycls class token", "raw"), ("torchvision", "raw"),
                          ("moco_v3 momentum", "averaged"), ("moco_v3 pre-training", "raw")):  # fmt: skip
        case = by_name[name]
        report = convert(case.hold(case.build().state_dict()), use_ema=case.use_ema, **case.facts).report
        assert report.weights == weights, name
        assert weights in report.summary()
    case = by_name["pycls averaged"]
    report = convert(case.hold(case.build().state_dict()), **case.facts).report
    assert "which have the lower error (raw 30.0, averaged 20.0)" in report.summary()
    assert "use_ema (--use-ema) takes them" in convert(
        by_name["torchvision"].hold(by_name["torchvision"].build().state_dict()), **by_name["torchvision"].facts
    ).report.summary()  # fmt: skip


def test_what_is_left_out_has_a_reason() -> None:
    case = next(case for case in CASES if case.name == "moco_v3 pre-training")
    dropped = convert(case.hold(case.build().state_dict())).report.dropped
    assert dropped["head.0.weight"] == "the projector is only for pre-training"
    assert dropped["module.predictor.0.weight"] == "the predictor is only for pre-training"
    assert "the averaged twin" in dropped["module.momentum_encoder.cls_token"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("args", "text"), ("args", {"model_kwargs": [1]}), ("args", {"mean": 3}), ("cfg", "VIT: ["), ("cfg", "VIT:")]
    + [("input_args", {"config": {"model": None}}), ("input_args", {"config": {"model": {"conv_stem_layers": 3}}})],
)
def test_settings_of_another_form_do_not_stop_a_conversion(key: str, value: Any) -> None:
    case = next(case for case in CASES if case.name == "torchvision")
    state = case.build().state_dict()
    converted = convert({"model": state, key: value}, **case.facts)
    assert same(converted.state_dict, convert(state, **case.facts).state_dict)
    assert f"the checkpoint's '{key}' could not be read" in converted.report.summary()


def test_errors_that_are_no_numbers_choose_nothing() -> None:
    case = next(case for case in CASES if case.name == "torchvision")
    state = case.build().state_dict()
    held = {"model": state, "model_ema": state, "test_err": "low", "ema_err": 1.0}
    assert convert(held, **case.facts).report.weights == "raw"


@pytest.mark.parametrize("given", [None, torch.nn.Linear(1, 1), 5, [1], "checkpoint.pth"], ids=repr)
def test_what_is_no_checkpoint(given: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=f"a checkpoint is a mapping.* got {type(given).__name__}: pass model"):
        convert(given)


def test_no_model_in_a_classyvision_checkpoint() -> None:
    with pytest.raises(ConversionError, match="no model in this ClassyVision checkpoint: expected classy_state"):
        convert({"classy_state_dict": {"base_model": {}}})


def test_what_a_layout_lacks_has_words() -> None:
    assert {field for layout in LAYOUTS.values() for field in layout.expresses} <= LACKS.keys()
    state = timm.create_model("vit_small_patch14_dinov2", depth=1, num_classes=3).state_dict()
    with pytest.raises(ConversionError, match="transformers_dinov2 cannot express this model: it has a classifier"):
        convert(state, "timm", "transformers_dinov2")


@pytest.mark.parametrize("name", mostly_in_ci(["vit_nano4_convstem", "vit_conv_small"], {"vit_nano4_convstem"}))
@pytest.mark.parametrize("target", ["timm", "torchvision"])
def test_a_folded_stem_needs_no_word_about_its_strides(name: str, target: str) -> None:
    model = randomise(timm.create_model(name, stem_norm="batchnorm2d")).eval()
    folded = fold(model)
    for facts in ({"architecture": name}, {} if name == "vit_nano4_convstem" else {"num_heads": 12}):
        converted = convert(folded.state_dict(), target=target, **facts)
        twin = timm.create_model(converted.architecture, **converted.model_args).eval()
        twin.load_state_dict(convert(converted, target, "timm") if target != "timm" else converted)
        x = torch.rand(1, *model.pretrained_cfg["input_size"])
        with torch.no_grad():
            torch.testing.assert_close(twin(x), model(x), rtol=1e-3, atol=1e-4)
