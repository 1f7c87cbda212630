"""Calls that need no network work offline, and say what they could not compare."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
from click.testing import CliRunner
from huggingface_hub import constants

import convstem
from convstem.cli.main import main
from convstem.errors import ArgumentError, UnreachableError, UnsupportedModelError
from convstem.publishing.commit import Target, push_folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def nano() -> Any:
    return timm.create_model("vit_nano4_convstem", num_classes=3)


def test_a_dry_run_of_push() -> None:
    result = convstem.push(nano(), "me/nano", license="mit", dry_run=True)
    assert result.files == dict.fromkeys(("config.json", "model.safetensors", "README.md"), "send")
    assert result.commit is None
    assert (
        "not compared with the Hub: the Hub is switched off, so me/nano was not requested: unset HF_HUB_OFFLINE"
        in result.note
    )
    with pytest.raises(UnreachableError, match="switched off"):
        convstem.push(nano(), "me/nano", license="mit")


def test_a_dry_run_of_publish() -> None:
    (row,) = convstem.publish("me", "vit_nano4*", dry_run=True)
    assert row.action == "publish"
    assert row.detail.endswith("the Hub did not answer, so its content is unknown")
    with pytest.raises(UnreachableError, match="switched off"):
        convstem.publish("me", "vit_nano4*")


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "pvt_v2_b0"])
def test_what_is_no_vit_is_said_before_its_weights_are_missed(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="transplant takes models with one timm PatchEmbed"):
        convstem.transplant(name)
    done = CliRunner().invoke(main, ["transplant", "resnet18", "--out", str(tmp_path / "x")])
    assert done.output.startswith("Error: ResNet has no patch_embed")


def test_metrics_without_a_dataset_name_the_option() -> None:
    with pytest.raises(ArgumentError, match=r"dataset= \(--dataset on the command line\)"):
        convstem.push(nano(), "me/nano", license="mit", metrics={"acc": 81.0})


def test_pull_hands_on_where_to_keep_and_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}

    def fetch_all(*arguments: Any, **named: Any) -> dict[str, Any]:
        called.update(named, arguments=arguments)
        return {"model.safetensors": SimpleNamespace(path=Path("cache", "snapshot", "model.safetensors"))}

    monkeypatch.setattr("convstem.publishing.pull.fetch_all", fetch_all)
    assert convstem.pull("org/m@old", "v2", cache_dir="place", token="t") == Path("cache", "snapshot")
    files = ["config.json", "model.safetensors"]
    assert called == {
        "arguments": ("org/m", files, "v2"), "optional": ["README.md"], "cache_dir": "place", "token": "t"
    }  # fmt: skip


def test_a_dry_run_for_a_new_repository_would_change_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("convstem.publishing.commit._current", lambda target: None)
    result = push_folder(tmp_path, Target("org/m"), dry_run=True)
    assert (result.changed, result.commit, set(result.files.values())) == (True, None, {"add"})
