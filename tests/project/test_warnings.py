"""Warnings point to the line that called convstem, timm or torchvision, by any route."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision

import convstem
from convstem.errors import UnreachableError

TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
META = torch.device("meta")


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
