"""Under any torch default device and dtype, every public function gives its usual result or says why not."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models import save_for_hf
from torch import Tensor, nn

import convstem
from convstem.errors import AccessDeniedError, ArgumentError
from convstem.layouts.research import is_moco_sincos
from convstem.models.timm_models import SinCosVisionTransformer
from tests.support.assertions import randomise
from tests.support.everyday import mostly_in_ci, one_in

NANO, TV_NANO = "vit_nano4_convstem", "vit_nano_4_convstem"
SMALL = {"depth": 1, "num_classes": 5}
TIMM_TI16 = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
DTYPES = {"float64": torch.float64, "bfloat16": torch.bfloat16}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cache
def models() -> dict[str, Any]:
    """Models made beforehand; operations on them must not depend on defaults."""
    plain = timm.create_model("vit_tiny_patch16_224", **SMALL)
    patch14 = timm.create_model("vit_small_patch14_dinov2", depth=1, img_size=28)
    return {
        "whole": randomise(timm.create_model("vit_tiny_patch16_224", depth=1)).eval(),
        "timm": randomise(timm.create_model(NANO)).eval(),
        "half": randomise(timm.create_model(NANO)).half().eval(),
        "torchvision": randomise(torchvision.models.get_model(TV_NANO)).eval(),
        "pyramid": randomise(timm.create_model(NANO, dynamic_img_size=True)).eval(),
        "plain": randomise(plain).eval(),
        "patch14": randomise(patch14).eval(),
        "torchvision's plain": randomise(
            torchvision.models.VisionTransformer(32, 16, 1, 3, 48, 48, num_classes=5)
        ).eval(),
    }


@cache
def images() -> Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def copy_of(name: str) -> nn.Module:
    import copy

    return copy.deepcopy(models()[name])


def state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


@torch.no_grad()
def pyramid() -> dict[str, Tensor]:
    return dict(convstem.feature_pyramid(models()["pyramid"])(images()))


def frozen(name: str) -> Any:
    model = convstem.freeze_stem(copy_of(name))
    return {**state(model), "trainable": [name for name, p in model.named_parameters() if p.requires_grad]}


SENT: dict[str, bytes] = {}
"""Files that would have been sent to the Hub."""


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, hub_file: Callable[..., None]) -> None:
    hub_file(TIMM_TI16, models()["whole"].state_dict())

    def send(folder: Path, *_: Any) -> Any:
        SENT.clear()
        SENT.update({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        return SimpleNamespace(changed=True, commit="0" * 40)

    def absent(*_: Any, **__: Any) -> None:
        raise AccessDeniedError("not there")

    for module in ("push", "publish"):
        monkeypatch.setattr(f"convstem.publishing.{module}.push_folder", send)
    monkeypatch.setattr("convstem.publishing.publish.list_files", absent)


def pushed(model: Any) -> dict[str, bytes]:
    convstem.push(model, "org/name", license="mit")
    return dict(SENT)


def published() -> Any:
    rows = convstem.publish("org", "vit_nano*")
    assert [row.action for row in rows] == ["published"], rows
    return dict(SENT)


BANDS = {"in_chans": 5, "bands": [4, 0, 2]}

CALLS: dict[str, Callable[[Path], Any]] = {
    "StemSpec": lambda _: asdict(convstem.StemSpec((24, 96, 384, 1536))),
    "convert": lambda _: convstem.convert(state(models()["timm"]), source="timm", target="torchvision").state_dict,
    "convert back": lambda _: (
        convstem.convert(state(models()["torchvision"]), source="torchvision", target="timm").state_dict
    ),
    "feature_pyramid": lambda _: pyramid(),
    "fold": lambda _: state(convstem.fold(models()["timm"])),
    "fold half": lambda _: state(convstem.fold(models()["half"])),
    "fold torchvision's": lambda _: state(convstem.fold(models()["torchvision"])),
    "freeze_stem": lambda _: frozen("timm"),
    "freeze_stem torchvision's": lambda _: frozen("torchvision"),
    "list_models": lambda _: convstem.list_models("*nano*"),
    "load": lambda _: state(convstem.load(NANO)),
    "load half": lambda _: state(convstem.load(NANO, dtype="float16")),
    "load torchvision's": lambda _: state(convstem.load(NANO, layout="torchvision")),
    "load a folder": lambda out: state(convstem.load(convstem.pull(NANO, out=out))),
    "publish": lambda _: published(),
    "pull": lambda out: {p.name: p.read_bytes() for p in convstem.pull(NANO, out=out).iterdir()},
    "push": lambda _: pushed(models()["timm"]),
    "push half": lambda _: pushed(models()["half"]),
    "push torchvision's": lambda _: pushed(models()["torchvision"]),
    "register": lambda _: sorted(convstem.register()["timm"].names),
    "transplant": lambda _: state(convstem.transplant(models()["plain"])),
    "transplant bands": lambda _: state(convstem.transplant(models()["plain"], **BANDS)),
    "transplant into BatchNorm": lambda _: state(
        convstem.transplant(models()["plain"], stem=convstem.StemSpec((24, 96, 384, 1536), norm="batchnorm2d"))
    ),
    "transplant patch 14": lambda _: state(convstem.transplant(models()["patch14"])),
    "transplant torchvision's": lambda _: state(convstem.transplant(models()["torchvision's plain"])),
    "verify": lambda out: convstem.verify(convstem.pull(NANO, out=out)).to_json()["checks"],
    "timm's transplanted": lambda _: state(timm.create_model("vit_ti16_convstem", pretrained=True, depth=1)),
    "timm": lambda _: state(timm.create_model(NANO, pretrained=True)),
    "torchvision": lambda _: state(torchvision.models.get_model(TV_NANO, weights="DEFAULT")),
}

IN_DEFAULT_TYPE = ("timm's transplanted", "load", "load torchvision's", "load a folder", "timm", "torchvision")
"""Calls whose result has torch's default dtype, like timm's and torchvision's own."""


def same(found: Any, expected: Any, dtype: torch.dtype | None = None) -> bool:
    if isinstance(expected, Tensor):
        expected = expected.to(dtype) if dtype and expected.is_floating_point() else expected
        there = not found.is_meta and found.device == expected.device and found.dtype == expected.dtype
        return there and torch.equal(found, expected)
    if isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(same(found[key], expected[key], dtype) for key in expected)
    return bool(json.dumps(found, default=str) == json.dumps(expected, default=str))


def result(call: str, out: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the meta device holds no values")
        return CALLS[call](out)


@cache
def usual(call: str) -> Any:
    import tempfile

    return result(call, Path(tempfile.mkdtemp()) / "m")


def test_every_public_function_is_called() -> None:
    asked = {name.split()[0] for name in CALLS}
    assert {name for name in dir(convstem) if name not in asked} == {"ConvStemError"}


def test_negative_control() -> None:
    tensors = usual("transplant")
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    assert not same({**tensors, "head.bias": model.head.bias}, tensors)
    assert not same({**tensors, "head.bias": tensors["head.bias"] + 1}, tensors)
    assert not same({**tensors, "head.bias": tensors["head.bias"].double()}, tensors)
    assert not same([1, 2], [1, 3])


@pytest.mark.parametrize("call", one_in(2, list(CALLS)))
def test_on_the_meta_device(call: str, tmp_path: Path) -> None:
    expected = usual(call)
    with torch.device("meta"):
        found = result(call, tmp_path / "m")
    assert same(found, expected)


@pytest.mark.parametrize("dtype", mostly_in_ci(list(DTYPES), {"bfloat16"}))
@pytest.mark.parametrize("call", CALLS)
def test_with_another_default_type(call: str, dtype: str, tmp_path: Path) -> None:
    expected = usual(call)
    with default_dtype(DTYPES[dtype]):
        found = result(call, tmp_path / "m")
    assert same(found, expected, DTYPES[dtype] if call in IN_DEFAULT_TYPE else None)


def test_a_named_source_on_the_meta_device(tmp_path: Path) -> None:
    save_for_hf(models()["plain"], tmp_path)
    assert convstem.transplant(tmp_path)
    with torch.device("meta"):
        with pytest.raises(ArgumentError, match="default device is meta, which holds no values.*pretrained=False"):
            convstem.transplant(tmp_path)
        made = timm.create_model("vit_tiny_patch16_224", **SMALL)
        with pytest.raises(ArgumentError, match="is on the meta device, so it has no values"):
            convstem.transplant(made)


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES.values()])
def test_a_fixed_position_embedding_is_recognised(dtype: torch.dtype) -> None:
    model = timm.create_model("vit_nano4_convstem", img_size=16)
    table = SinCosVisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=2).pos_embed
    assert not is_moco_sincos(model.pos_embed.detach()[:, :17])  # negative control
    with torch.device("meta"), default_dtype(dtype):
        assert is_moco_sincos(table)
