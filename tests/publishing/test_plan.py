"""Publishing the registry without the Hub: refusals and requests."""

import os
from typing import Any

import pytest
import timm
import torch

import convstem
from convstem.errors import ArgumentError, ConvStemError
from convstem.hub.repo_cache import Listed, Listing
from convstem.hub.source import FILES
from convstem.publishing import publish as publishing
from convstem.publishing import push as pushing
from convstem.publishing import verify as verifying
from convstem.publishing.publish import Publication
from convstem.publishing.verify import _answer
from convstem.registry import catalog

TRANSPLANT = next(entry for entry in catalog.weights().values() if entry.transform != "none")


class Asked(Exception):
    """Raised in place of a request to the Hub."""


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The requests to the Hub."""
    found: dict[str, Any] = {}

    def fetch(repository: str, **options: Any) -> None:
        found.update(options, repository=repository)
        raise Asked

    monkeypatch.setattr(publishing, "fetch", fetch)
    return found


def test_weights_are_published_as_float32_alone(asked: dict[str, Any], tmp_path: Any) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ArgumentError, match=r"torch's default type is torch\.float64: set it to torch\.float32"):
            publishing._stage_transplant(TRANSPLANT, tmp_path, None)
    finally:
        torch.set_default_dtype(torch.float32)
    assert asked == {}


def test_the_source_of_a_transplant_is_asked_for_by_its_commit(asked: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(Asked):
        publishing._stage_transplant(TRANSPLANT, tmp_path, "secret")
    repository, revision = TRANSPLANT.hub_name
    assert asked == {"repository": repository, "revision": revision, "token": "secret"}


def test_metrics_need_their_dataset() -> None:
    with pytest.raises(ArgumentError, match="metrics need the dataset they were measured on"):
        convstem.push("nowhere", "org/m", license="mit", metrics={"top1": 90.0})


def test_an_answer_is_one_whatever_goes_wrong() -> None:
    checks = [_answer("header", lambda: "fine"), _answer("header", lambda: str(1 // 0))]
    assert [check.ok for check in checks] == [True, False]
    assert checks[1].detail.startswith("ZeroDivisionError: ")


def test_what_is_pushed_is_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("vit_nano4_convstem")
    pushed: list[Any] = []
    monkeypatch.setattr(pushing, "push_folder", lambda folder, *_: pushed.append(sorted(os.listdir(folder))))
    convstem.push(model, "org/m", license="mit")
    assert pushed == [["README.md", "config.json", "model.safetensors"]]  # negative control
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(ConvStemError, match=r"holds NaN or Inf in head\.bias"):
        convstem.push(model, "org/m", license="mit")
    assert len(pushed) == 1


def test_what_is_verified_is_asked_for_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing("1" * 40, {name: Listed(1, "2" * 40) for name in FILES})
    asked: list[Any] = []

    def fetch_all(*arguments: Any, **options: Any) -> None:
        asked.append((arguments, options))
        raise Asked

    monkeypatch.setattr(verifying, "list_files", lambda *_, **__: listing)
    monkeypatch.setattr(verifying, "fetch_all", fetch_all)
    with pytest.raises(Asked):
        convstem.verify("org/m", token="secret")
    ((repository, names, commit), options) = asked[0]
    assert (repository, set(names), commit, options) == ("org/m", {*FILES}, listing.commit, {"token": "secret"})


@pytest.mark.parametrize("action", ["skip", "refuse"])
def test_what_is_not_to_be_published_is_left_alone(action: str) -> None:
    row, told = Publication("a.b", "org/a.b", action, "why"), list[Publication]()
    assert publishing._carry_out(row, False, None, told.append) is row
    assert told == []


def test_what_fails_is_told_and_the_others_go_on() -> None:
    row, told = Publication("no.such", "org/no.such", "publish", ""), list[Publication]()
    done = publishing._carry_out(row, False, None, told.append)
    assert (done.action, told) == ("failed", [done])
    assert done.detail == "KeyError: 'no.such'"
