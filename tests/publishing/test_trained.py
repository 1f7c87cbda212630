"""A train.py checkpoint is subject to a config's limits, and causes no network request."""

import argparse
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import convstem
from convstem.errors import ConvStemError
from convstem.publishing.push import stage

NANO = "vit_nano4_convstem"
Content = dict[str, Any]


@pytest.fixture(scope="module")
def good() -> Content:
    model = timm.create_model(NANO, num_classes=3)
    args = argparse.Namespace(model=NANO, pretrained=False, mean=[0.1, 0.2, 0.3], model_kwargs={"drop_rate": 0.1})
    return {"arch": NANO, "epoch": 3, "state_dict": model.state_dict(), "args": args}


def arguments(**args: Any) -> Callable[[Content], Content]:
    return lambda content: {**content, "args": argparse.Namespace(**args)}


def kwargs(**model_kwargs: Any) -> Callable[[Content], Content]:
    return arguments(model_kwargs=model_kwargs)


def weights(change: Callable[[Content], Any]) -> Callable[[Content], Content]:
    return lambda content: {**content, "state_dict": change(content["state_dict"])}


SPOILT: dict[str, tuple[Callable[[Content], Content], str]] = {
    "a key is missing": (
        weights(lambda state: {key: value for key, value in state.items() if key != "norm.weight"}),
        "the weights in c.pth do not fit vit_nano4_convstem: the file lacks what the model needs: norm.weight",
    ),
    "weights of another size": (kwargs(depth=2), "do not fit vit_nano4_convstem: the model has no place for"),
    "no state dict": (weights(lambda state: None), "state_dict of c.pth is a NoneType; expected tensors by key"),
    "integers as keys": (weights(lambda state: {1: state["norm.weight"]}), "must hold tensors by key; 1 is not one"),
    "no tensors": (weights(lambda state: {**state, "norm.weight": 3}), "tensors by key; norm.weight is not one"),
    "a head without axes": (weights(lambda s: {**s, "head.weight": torch.tensor(1.0)}), "head.weight .file .., model"),
    "integers": (
        weights(lambda state: {key: (value * 9).to(torch.int8) for key, value in state.items()}),
        "kinds of numbers differ: ",
    ),
    "positions without axes": (weights(lambda s: {**s, "pos_embed": torch.tensor(1.0)}), "pos_embed .file .., model"),
    "args of another kind": (lambda c: {**c, "args": 3}, "args of c.pth are a int; train.py keeps them in a Namespace"),
    "arguments as a list": (arguments(model_kwargs=["a"]), "model_kwargs of c.pth are a list; expected arguments"),
    "pooling by number": (arguments(gp=5), "the arguments in c.pth: global_pool must be one of .*; got 5"),
    "images without size": (arguments(img_size="large"), "describe no images: {'img_size': 'large'}"),
    "mean as text": (arguments(mean="abc"), "the arguments in c.pth: mean must be a list of numbers; got"),
    "depth": (kwargs(depth=10**9), "the arguments in c.pth: depth = 1000000000 is too large; at most 512"),
    "depth beyond the file": (kwargs(depth=500), "depth = 500 is more than the weights beside it allow"),
    "width": (kwargs(embed_dim=12288), "embed_dim = 12288 is more than the weights"),
    "stem": (kwargs(stem_channels=[10**12]), "stem_channels = .1000000000000. is too large"),
    "checkpoint_path": (kwargs(checkpoint_path="/etc/passwd"), "unknown model_args checkpoint_path;"),
    "pretrained": (kwargs(pretrained=True), "unknown model_args pretrained;"),
    "an address": (
        kwargs(pretrained=True, pretrained_cfg_overlay={"url": "http://127.0.0.1:9/x.pth"}),
        "unknown model_args pretrained, pretrained_cfg_overlay;",
    ),
    "an address in a cfg": (
        kwargs(pretrained_cfg={"url": "http://127.0.0.1:9/x"}),
        "unknown model_args pretrained_cfg",
    ),
    "no name": (lambda c: {**c, "arch": torch.ones(2)}, "expected a conv-stem architecture of convstem, got 'tensor"),
    "a folder that is none": (
        lambda c: {**c, "arch": "local-dir:gone"},
        "which can no longer be read .* architecture=NAME",
    ),
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record and refuse every connection."""
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def staged(content: Content, tmp_path: Path, **options: Any) -> Path:
    torch.save(content, tmp_path / "c.pth")
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    stage(tmp_path / "c.pth", out, **options)
    return out


def test_a_good_one_is_staged(good: Content, tmp_path: Path, no_network: list[Any]) -> None:
    model = convstem.load(staged(good, tmp_path))
    assert model.pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
    assert torch.equal(model.head.weight, good["state_dict"]["head.weight"])
    as_dict = {**good, "args": vars(good["args"])}
    assert convstem.load(staged(as_dict, tmp_path)).pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
    assert no_network == []


@pytest.mark.parametrize("size", [32, 64])
def test_the_positions_tell_how_large_the_images_are(size: int, good: Content, tmp_path: Path) -> None:
    state = timm.create_model(NANO, num_classes=3, img_size=size).state_dict()
    args = argparse.Namespace(**{**vars(good["args"]), "img_size": size})
    folder = staged({**good, "state_dict": state, "args": args}, tmp_path)
    assert json.loads((folder / "config.json").read_text())["model_args"]["img_size"] == [size, size]
    assert convstem.load(folder).patch_embed.img_size == (size, size)


@pytest.mark.parametrize("name", SPOILT)
def test_what_cannot_be_is_one_of_our_errors(name: str, good: Content, tmp_path: Path, no_network: list[Any]) -> None:
    spoil, message = SPOILT[name]
    with pytest.raises(ConvStemError, match=message) as caught:
        staged(spoil(good), tmp_path)
    assert len(str(caught.value)) < 3000
    assert no_network == []


def test_no_repository_is_asked_where_the_architecture_is_given(
    good: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invalid repository name also never reaches a card."""
    fetched: list[Any] = []
    monkeypatch.setattr("convstem.publishing.trained.fetch", lambda *args: fetched.append(args))
    content = {**good, "arch": "hf-hub:evil/x\n# Owned", "args": argparse.Namespace(pretrained=True)}
    out = staged(content, tmp_path, architecture=NANO)
    assert fetched == []
    assert "Owned" not in (out / "config.json").read_text()


def test_averaged_weights_that_are_not_there(good: Content, tmp_path: Path) -> None:
    torch.save(good, tmp_path / "c.pth")
    with pytest.raises(ConvStemError, match="c.pth has no state_dict_ema; the weights it has: state_dict$"):
        stage(tmp_path / "c.pth", tmp_path, use_ema=True)
