"""A download in pieces resumes at the last whole piece, shows its progress, and never has the wrong length."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    disable_progress_bars,
    enable_progress_bars,
    tqdm,
)

from convstem.hub import download
from convstem.hub.download import download_pieces

CONTENT = bytes(range(10))


@pytest.fixture(autouse=True)
def remote(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A Hub with one file; returns the requests it received."""
    asked: list[tuple[Any, ...]] = []

    def open_remote(path: str, mode: str, **options: Any) -> io.BytesIO:
        asked.append((path, mode, options["size"]))
        return io.BytesIO(CONTENT)

    monkeypatch.setattr(download, "PIECE", 4)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda **_: SimpleNamespace(open=open_remote))
    return asked


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The progress bar's updates: (title, total, initial, added)."""
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(tqdm, "update", lambda bar, n: told.append((bar.desc, bar.total, bar.initial, n)))
    return told


@pytest.mark.parametrize(
    ("before", "initial", "lengths"),
    [(None, 0, [4, 4, 2]), (b"abc", 0, [4, 4, 2]), (CONTENT[:7], 4, [4, 2]), (CONTENT + b"more", 8, [2])],
)
def test_it_goes_on_at_the_last_whole_piece(
    before: bytes | None,
    initial: int,
    lengths: list[int],
    tmp_path: Path,
    remote: list[tuple[Any, ...]],
    shown: list[tuple[Any, ...]],
) -> None:
    target = tmp_path / "blobs" / "partial"
    if before is not None:
        target.parent.mkdir()
        target.write_bytes(before)
    download_pieces("org/m", "1" * 40, "model.safetensors", len(CONTENT), target)
    assert target.read_bytes() == CONTENT
    assert remote == [(f"org/m@{'1' * 40}/model.safetensors", "rb", len(CONTENT))]
    assert shown == [("model.safetensors", len(CONTENT), initial, length) for length in lengths]


def test_a_short_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="got 2 of 4 bytes of model.safetensors from byte 8"):
        download_pieces("org/m", "1" * 40, "model.safetensors", 12, tmp_path / "partial")


@pytest.mark.parametrize("group", ["convstem", "convstem.hub", "others"])
def test_the_bar_has_a_name_by_which_it_is_switched_off(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[bool] = []
    monkeypatch.setattr(tqdm, "update", lambda bar, n: states.append(bar.disable))
    disable_progress_bars(group)
    try:
        download_pieces("org/m", "1" * 40, "model.safetensors", len(CONTENT), tmp_path / "partial")
    finally:
        enable_progress_bars(group)
    assert states == [group != "others"] * 3
