"""A download starts only if the disk has room for it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convstem.errors import HubError
from convstem.hub import download
from convstem.hub.download import _check_size
from convstem.hub.repo_cache import Listed, Listing, RepoCache


def test_a_file_may_take_all_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    cache = RepoCache("org/m", tmp_path / "not" / "there" / "yet")
    _check_size(cache, "model.safetensors", 10)
    with pytest.raises(HubError, match=r"model\.safetensors of org/m is 11 bytes, but the cache's disk has 10 free"):
        _check_size(cache, "model.safetensors", 11)


def test_a_card_and_a_config_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convstem.hub.download.LARGEST_TEXT", 3)
    cache = RepoCache("org/m", tmp_path)
    _check_size(cache, "model.safetensors", 4)
    for name in ("README.md", "config.json"):
        _check_size(cache, name, 3)
        with pytest.raises(HubError, match=f"{name} of org/m is 4 bytes; at most 3 are read"):
            _check_size(cache, name, 4)


@pytest.mark.parametrize(("found", "expected"), [(None, FileNotFoundError), ("2" * 64, "2" * 64), ("1" * 64, "pieces")])
def test_what_the_client_leaves_is_looked_at(
    found: str | None, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be deleted, have wrong content, or have the right content under another blob's name."""
    monkeypatch.setattr(download, "_ask_client", lambda *_: None)
    monkeypatch.setattr(download, "_by_pieces", lambda *_: "pieces")
    monkeypatch.setattr(RepoCache, "discard", lambda *_: found)
    monkeypatch.setattr(RepoCache, "verified", lambda *_: False)
    listing = Listing("3" * 40, {"model.safetensors": Listed(1, "1" * 64)})
    asked = (RepoCache("org/m", tmp_path), listing, "model.safetensors", None)
    if isinstance(expected, str):
        assert download._by_client(*asked) == expected
        return
    with pytest.raises(expected, match="deleted meanwhile"):
        download._by_client(*asked)


@pytest.mark.parametrize(
    ("answers", "ways"),
    [(["1" * 64], ["client"]), (["2" * 64, "1" * 64], ["client", "pieces"]), (["2" * 64, "3" * 64], None)],
)
def test_wrong_content_is_fetched_once_more(
    answers: list[str], ways: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def way(name: str) -> Callable[..., str]:
        def fetch(*_: Any) -> str:
            asked.append(name)
            return answers[len(asked) - 1]

        return fetch

    monkeypatch.setattr(download, "_by_client", way("client"))
    monkeypatch.setattr(download, "_by_pieces", way("pieces"))
    listing = Listing("3" * 40, {"model.safetensors": Listed(1, "1" * 64)})
    given = (RepoCache("org/m", tmp_path), listing, "model.safetensors", None)
    if ways:
        download.download(*given)
        assert asked == ways
        return
    with pytest.raises(HubError, match="expected hash 1{64}, got 3{64}"):
        download.download(*given)
