"""Checkpoints of users' own pre-training: DINO, DINOv2, Lightning, and those that timm itself reads better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import Tensor

import convstem
from convstem import convert
from convstem.errors import ConversionError
from tests.support.assertions import randomise, relative_error
from tests.support.layout_cases import State, add_prefix, other

SIZES: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 4, "num_classes": 0}
HEADS = {"dino_head.mlp.0.weight": torch.zeros(1), "ibot_head.last_layer.weight_g": torch.zeros(1)}


def vit(**more: Any) -> VisionTransformer:
    return randomise(VisionTransformer(**SIZES, init_values=1e-5, **more).double().eval())


def chunked(state: State, size: int = 2) -> State:
    """Return DINOv2's keys with ``block_chunks``: a block keeps its number inside its chunk."""
    parts = {key: key.split(".") for key in state}
    return {
        key if part[0] != "blocks" else ".".join(["blocks", str(int(part[1]) // size), *part[1:]]): state[key]
        for key, part in parts.items()
    }


def in_dino(state: State) -> State:
    head = {"head.mlp.0.weight": torch.zeros(1), "head.last_layer.weight_v": torch.zeros(1)}
    teacher = {**add_prefix("backbone.", state), **head}
    student = add_prefix("module.", {**add_prefix("backbone.", other(state)), **head})
    return {"student": student, "teacher": teacher, "optimizer": {"state": {}}, "epoch": 3}


def in_dinov2(state: State) -> State:
    whole = {**add_prefix("backbone.", chunked(state)), **HEADS}
    twins = {**add_prefix("student.", other(whole)), **add_prefix("teacher.", whole)}
    return {"model": {**twins, "dino_loss.center": torch.zeros(1)}, "iteration": 7}


def in_lightly(state: State) -> State:
    raw, averaged = add_prefix("student_backbone.", other(state)), add_prefix("teacher_backbone.", state)
    return {"state_dict": {**raw, **averaged, "teacher_head.layers.0.weight": torch.zeros(1)}, "epoch": 3}


HOLDS: dict[str, tuple[Callable[[State], State], str]] = {
    "DINOv2's backbone": (lambda s: {**s, "mask_token": torch.zeros(1, 24)}, "raw"),
    "DINOv2's chunks": (chunked, "raw"),
    "DINO": (in_dino, "averaged"),
    "DINOv2's teacher_checkpoint.pth": (lambda s: {"teacher": {**add_prefix("backbone.", s), **HEADS}}, "averaged"),
    "DINOv2's training": (in_dinov2, "averaged"),
    "lightly": (in_lightly, "averaged"),
    "Lightning backbone.": (lambda s: {"state_dict": add_prefix("backbone.", s), "hyper_parameters": {}}, "raw"),
    "Lightning model., compiled": (lambda s: {"state_dict": add_prefix("model._orig_mod.", s)}, "raw"),
    "EMA": (lambda s: {"state_dict": other(s), "state_dict_ema": add_prefix("module.", s)}, "averaged"),
}


@pytest.mark.parametrize("name", HOLDS)
def test_a_backbone_comes_home(name: str) -> None:
    hold, weights = HOLDS[name]
    source, x = vit(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    use_ema = True if name == "EMA" else None
    converted = convert(hold(source.state_dict()), num_heads=3, use_ema=use_ema)
    assert converted.report.weights == weights
    model = randomise(timm.create_model(converted.architecture, **converted.model_args).double(), seed=3)
    with torch.no_grad():
        assert relative_error(model.eval()(x), source(x)) > 0.01  # negative control
        model.load_state_dict(converted)
        assert relative_error(model(x), source(x)) < 1e-12


@pytest.mark.parametrize("name", ["DINO", "DINOv2's training", "lightly"])
def test_the_student_is_taken_on_request(name: str) -> None:
    state = vit().state_dict()
    converted = convert(HOLDS[name][0](state), num_heads=3, use_ema=False)
    assert converted.report.weights == "raw"
    torch.testing.assert_close(converted["norm.bias"], state["norm.bias"] + 1)


@pytest.mark.parametrize("key", ["head.weight", "backbone2.norm.weight", "decoder.weight"])
def test_what_lies_beside_a_backbone_must_be_known(key: str) -> None:
    state = {**add_prefix("backbone.", vit().state_dict()), key: torch.zeros(1)}
    with pytest.raises(ConversionError, match="not a ViT checkpoint that convstem knows"):
        convert({"state_dict": state}, num_heads=3)


def test_registers_of_dinov2s_own_files() -> None:
    source, x = vit(reg_tokens=4, no_embed_class=True), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state = source.state_dict()
    position = torch.randn(1, 1, 24, dtype=torch.float64)
    official = {key: tensor for key, tensor in state.items() if key not in ("reg_token", "cls_token", "pos_embed")} | {
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - position,
        "pos_embed": torch.cat([position, state["pos_embed"]], 1),
    }
    converted = convert(chunked(official), num_heads=3)
    assert converted.source == "dinov2_registers"
    model = timm.create_model(converted.architecture, **converted.model_args).double().eval()
    model.load_state_dict(converted)
    with torch.no_grad():
        assert relative_error(model(x), source(x)) < 1e-12
    del official["register_tokens"]
    assert convert(official, num_heads=3).sizes.reg_tokens == 0


def as_official_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        key.replace("reg_token", "storage_tokens").replace("gamma_", "ls").replace("ls1", "ls1.gamma").replace(
            "ls2", "ls2.gamma"): tensor
        for key, tensor in state.items()
    }  # fmt: skip
    return {**renamed, "mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}


@pytest.mark.parametrize("keys", ["timm", "official"])
def test_dinov3_is_named_and_read_as_the_sentence_says(keys: str, tmp_path: Any) -> None:
    name = "vit_small_patch16_dinov3"
    source = randomise(timm.create_model(name, depth=1)).eval()
    state = source.state_dict() if keys == "timm" else as_official_dinov3(source.state_dict())
    with pytest.raises(ConversionError, match="DINOv3.*_convstem', pretrained=True, pretrained_cfg_overlay="):
        convert(state)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "file.safetensors")
    overlay = {"file": str(tmp_path / "file.safetensors")}
    model = timm.create_model(f"{name}_convstem", pretrained=True, pretrained_cfg_overlay=overlay, depth=1).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model(x), source(x)) < 1e-5
        assert relative_error(convstem.transplant(source)(x), source(x)) < 1e-5
