"""How a push treats a failed commit: it was made after all, somebody else pushed, or retry."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convstem.errors import HubError
from convstem.hub.repo_cache import Listed, Listing
from convstem.hub.source import FILES
from convstem.publishing.commit import Target, _after_failure
from tests.support.hub_server.store import git_hash

BEFORE, AFTER = "1" * 40, "2" * 40


class Conflict(Exception):
    """The Hub's answer if the branch has moved."""

    response = SimpleNamespace(status_code=412, headers={}, request=SimpleNamespace(method="POST", url="/api/"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


OURS = {name: Listed(1, git_hash(name.encode())) for name in FILES}
THEIRS = {**OURS, "config.json": Listed(1, "0" * 40)}


def held(monkeypatch: pytest.MonkeyPatch, commit: str, files: Any, **options: Any) -> Target:
    """Return a target with these files in its branch and in its only pull request."""
    discussions = SimpleNamespace(get_repo_discussions=lambda *_, **__: [SimpleNamespace(num=3)])
    monkeypatch.setattr(Target, "listing", lambda self, revision=None: Listing(commit, files))
    monkeypatch.setattr(Target, "api", discussions)
    return Target("org/m", **options)


def test_it_was_made_and_the_reply_was_lost(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    result = _after_failure(folder, held(monkeypatch, AFTER, OURS), BEFORE, Conflict())
    assert result is not None and (result.commit, result.changed) == (AFTER, True)


def test_somebody_else_was_faster(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with pytest.raises(HubError, match=f"expected commit {BEFORE}, found {AFTER}"):
        _after_failure(folder, held(monkeypatch, AFTER, THEIRS), BEFORE, Conflict())


def test_nothing_was_made(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert _after_failure(folder, held(monkeypatch, BEFORE, THEIRS), BEFORE, Conflict()) is None
    assert _after_failure(folder, held(monkeypatch, AFTER, THEIRS), BEFORE, KeyError("no answer of the Hub")) is None


def test_the_pull_request_was_made(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    result = _after_failure(folder, held(monkeypatch, AFTER, OURS, create_pr=True), BEFORE, Conflict())
    assert result is not None and (result.changed, str(result.pr_url)[-13:]) == (True, "discussions/3")
    assert _after_failure(folder, held(monkeypatch, AFTER, THEIRS, create_pr=True), BEFORE, Conflict()) is None
