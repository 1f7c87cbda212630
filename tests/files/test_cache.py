"""The cache of notes on checked files, beside the Hub's. Its own errors never stop a load."""

import errno
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from click.testing import CliRunner

from convstem.cli.main import main
from convstem.files import cache as local_cache

TIMM_TI16 = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("CONVSTEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def load(hub_file: Callable[..., None]) -> Callable[[], Any]:
    """Load a small model from the Hub; that checks its file."""
    hub_file(TIMM_TI16, timm.create_model("vit_tiny_patch16_224", depth=1).state_dict())
    return lambda: timm.create_model("vit_ti16_convstem", pretrained=True, depth=1)


def test_a_file_in_the_place_of_the_cache_folder(cache: Path, load: Callable[[], Any]) -> None:
    cache.write_text("not a folder")
    load()
    assert cache.read_text() == "not a folder"


def test_the_cache_command_shows_and_clears(cache: Path, load: Callable[[], Any]) -> None:
    assert json.loads(CliRunner().invoke(main, ["cache", "--json"]).output)["kinds"]["checked"]["files"] == 0
    load()
    assert sorted(path.name for path in cache.iterdir()) == ["checked"]  # nothing else is kept
    listed = json.loads(CliRunner().invoke(main, ["cache", "--json"]).output)
    assert listed["folder"] == str(cache)
    assert listed["kinds"]["checked"]["files"] == 1
    output = CliRunner().invoke(main, ["cache", "--clear"]).output
    assert f"checked: 1 files, {listed['kinds']['checked']['bytes'] / 1e6:.1f} MB" in output
    assert "removed: " in output
    assert local_cache.entries() == []
    load()
    assert CliRunner().invoke(main, ["cache", "--clear"]).exit_code == 0
    assert "checked: 0 files" in CliRunner().invoke(main, ["cache"]).output


def test_a_cache_that_may_not_be_cleared_is_one_sentence(
    cache: Path, load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        done = CliRunner().invoke(main, ["cache", "--clear"])
    assert done.exit_code == 1 and f"cannot clear {cache / 'checked'}: Permission denied" in done.output


def refuse(*args: object, **kwargs: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_clearing_beside_loads(cache: Path) -> None:
    """Another process writes and removes notes while this one lists and clears them."""
    stop = threading.Event()

    def write() -> None:
        for number in itertools.cycle(range(40)):
            if stop.is_set():
                return
            local_cache.store(cache / "checked" / f"{number}.json", lambda temporary: temporary.write_text("{}"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            local_cache.clear()
    finally:
        stop.set()
        writer.join()
    local_cache.clear()
    assert local_cache.entries() == []


def test_a_note_that_vanishes_while_the_cache_is_cleared(
    cache: Path, load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    (note,) = local_cache.entries()
    listed, real = [note, note], local_cache.entries
    monkeypatch.setattr(local_cache, "entries", lambda: listed)
    assert local_cache.clear() == note.size  # the second was already gone
    assert real() == []
    monkeypatch.setattr(Path, "glob", lambda *_: [note.path])
    assert real() == []
