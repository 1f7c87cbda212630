"""Unusual models and checkpoints are pushed and converted as they are, or refused in one sentence."""

import copy
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

import convstem
from convstem.errors import ArgumentError, ConvStemError, InvalidFileError, PathError, UnsupportedModelError
from convstem.publishing.convert import convert_to_folder
from convstem.publishing.push import stage
from convstem.publishing.verify import require, verify_folder
from tests.support.assertions import largest_difference, randomise
from tests.support.everyday import one_in

NANO = "vit_nano4_convstem"


def nano() -> nn.Module:
    return randomise(timm.create_model(NANO)).eval()


def tied_blocks() -> nn.Module:
    model = nano()
    model.blocks[1] = model.blocks[0]
    return model


def tied_weights() -> nn.Module:
    model = nano()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": nano,
    "frozen": lambda: convstem.freeze_stem(nano()),
    "frozen norms": lambda: convstem.freeze_stem(nano(), bn_only=True),
    "torchvision's frozen norms": lambda: convstem.freeze_stem(
        randomise(torchvision.models.get_model("vit_nano_4_convstem")).eval(), bn_only=True
    ),
    "tied blocks": tied_blocks,
    "tied weights": tied_weights,
}


@pytest.mark.parametrize("name", one_in(2, list(MODELS)))
def test_what_is_pushed_is_loaded_again(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    stage(model, tmp_path)
    require(verify_folder(tmp_path, name), skip=("license",))
    loaded = convstem.load(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert largest_difference(loaded, nano(), images) > 0 or name in ("plain", "frozen", "frozen norms")
    assert largest_difference(loaded, model, images) < 1e-4


def test_a_quantised_model() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nano(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UnsupportedModelError, match="the model is quantised: blocks.*save the model it was made"):
        convstem.push(model, "org/name", license="mit", dry_run=True)


def plain() -> nn.Module:
    return randomise(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=5)).eval()


def held(tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], name: str = "w.pth") -> Path:
    path = tmp_path / name
    torch.save({key: change(value) for key, value in plain().state_dict().items()}, path)
    return path


@pytest.mark.filterwarnings(
    "ignore:torch.quantize_per_tensor", "ignore:Validating sparse tensor", "ignore:TypedStorage"
)
def test_checkpoints_of_other_kinds_of_numbers(tmp_path: Path) -> None:
    assert convert_to_folder(held(tmp_path, lambda v: v), tmp_path / "plain", num_heads=3)  # negative control
    assert convert_to_folder(held(tmp_path, lambda v: v.to(torch.float8_e4m3fn)), tmp_path / "float8", num_heads=3)
    for change, error, said in (
        (lambda v: v.to("meta"), InvalidFileError, "tensors without values"),
        (lambda v: (v * 50).to(torch.int8), ConvStemError, "file integers, model floating-point numbers"),
        (lambda v: v.to(torch.complex64), ConvStemError, "kinds of numbers differ"),
        (lambda v: v.to_sparse(), ConvStemError, "a state dict holds dense tensors"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), ConvStemError, "dense tensors"),
    ):
        with pytest.raises(error, match=said):
            convert_to_folder(held(tmp_path, change), tmp_path / "out", num_heads=3)
        assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="all names are Unicode there")
def test_names_that_are_too_long_or_no_utf_8(tmp_path: Path) -> None:
    with pytest.raises(PathError, match="File name too long"):
        convert_to_folder(held(tmp_path, lambda v: v), tmp_path / ("a" * 300), num_heads=3)
    odd = held(tmp_path, lambda v: v, os.fsdecode(b"w\xe9.pth"))
    convert_to_folder(odd, tmp_path / "out", num_heads=3)
    assert "Converted from `w?.pth`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_transplants_of_odd_patch_embeddings() -> None:
    with pytest.raises(UnsupportedModelError, match="has no input channels"):
        convstem.transplant(timm.create_model("vit_tiny_patch16_224", depth=1, in_chans=0))
    for dtype in (torch.float8_e4m3fn, torch.int8):
        model = plain()
        weight = model.patch_embed.proj.weight.detach().to(dtype)
        model.patch_embed.proj.weight = nn.Parameter(weight, requires_grad=False)
        with pytest.raises(ArgumentError, match=f"of floating-point numbers; got shape .*{dtype}"):
            convstem.transplant(model)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_frozen_patch_embedding_stays_frozen(trainable: bool) -> None:
    model = copy.deepcopy(plain())
    model.patch_embed.requires_grad_(trainable)
    grown = convstem.transplant(model)
    assert {p.requires_grad for p in grown.patch_embed.parameters()} == {trainable}
    assert all(p.requires_grad for p in grown.blocks.parameters())
