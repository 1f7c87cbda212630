"""Warnings blame the line that called convstem, timm or torchvision, whichever way the call took."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner

import convstem
from convstem.cli.main import main
from convstem.errors import UnreachableError
from tests.support.assertions import randomise

TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
TRUNK = "vit_small_patch16_dinov3.lvd1689m"
NARROW = (12, 24, 48, 96)
META = torch.device("meta")


def by_command(tmp_path: Path) -> None:
    channels = ",".join(map(str, NARROW))
    CliRunner().invoke(main, ["transplant", TINY, "--out", str(tmp_path / "out"), "--stem-channels", channels])


NARROW_CALLS = {
    "transplant a model": lambda _: convstem.transplant(timm.create_model(TINY), convstem.StemSpec(NARROW)),
    "transplant a name": lambda _: convstem.transplant(TINY, convstem.StemSpec(NARROW)),
    "create_model": lambda _: timm.create_model("vit_ti16_convstem", pretrained=True, stem_channels=NARROW),
    "create_model on a trunk": lambda _: timm.create_model(
        "vit_s16_dinov3_convstem", pretrained=True, stem_channels=NARROW
    ),
    "load": lambda _: convstem.load("vit_ti16_convstem", stem_channels=NARROW),
    "command": by_command,
}


@pytest.mark.full
def test_a_narrow_stem(hub_file: Callable[..., None], tmp_path: Path) -> None:
    for name in (TINY, TRUNK):
        hub_file(f"timm/{name}", randomise(timm.create_model(name)).state_dict())
    for way, call in NARROW_CALLS.items():
        with pytest.warns(UserWarning, match="is too narrow to carry") as caught:
            call(tmp_path)
        assert {warning.filename for warning in caught} == {__file__}, way


def with_meta_default() -> None:
    with META:
        torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT")


META_CALLS = {
    "create_model": lambda: timm.create_model("vit_nano4_convstem", pretrained=True, device=META),
    "load": lambda: convstem.load("vit_nano4_convstem", device=META),
    "get_model": with_meta_default,
}


@pytest.mark.parametrize("call", META_CALLS.values(), ids=META_CALLS)
def test_the_meta_device(call: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="the meta device holds no values") as caught:
        call()
    assert [warning.filename for warning in caught] == [__file__]


def test_a_copy_in_the_cache(hub_file: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise UnreachableError("the Hub does not answer")

    hub_file(f"timm/{TINY}", timm.create_model(TINY).state_dict())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("convstem.hub.read.list_files", unreachable)
    for call in (
        lambda: timm.create_model("vit_ti16_convstem", pretrained=True),
        lambda: convstem.load("vit_ti16_convstem"),
        lambda: torchvision.models.get_model("vit_ti_16_convstem", weights="DEFAULT"),
    ):
        with pytest.warns(UserWarning, match="does not answer. Using the copy in the cache") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


CLASH = """
import warnings, timm
def vit_s16_convstem(pretrained=False, **kwargs): pass
timm.models.register_model(vit_s16_convstem)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import convstem
    convstem.register()
assert [(w.filename, w.lineno) for w in caught] == [("<string>", 7), ("<string>", 8)], [str(w) for w in caught]
"""


@pytest.mark.full
def test_names_left_to_their_owners() -> None:
    subprocess.run([sys.executable, "-c", CLASH], check=True, env={**os.environ, "CONVSTEM_AUTOLOAD": "0"})
