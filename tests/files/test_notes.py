"""A file's note is valid until the file changes."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convstem.files import cache
from convstem.files.cache import Note, check_once
from convstem.files.safetensors import read_weights


@pytest.fixture
def another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """An empty cache. Call the result to forget the notes in this process's memory."""
    monkeypatch.setenv("CONVSTEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_NOTES", {})
    return lambda: monkeypatch.setattr(cache, "_NOTES", {})


def test_a_check_runs_once_for_each_question(another_process: Callable[[], None], tmp_path: Path) -> None:
    looks: list[str] = []
    path = tmp_path / "file"
    path.write_text("content")
    for question in ("finite", "finite", "another question"):
        check_once(path, question, partial(looks.append, question))
        another_process()
    assert looks == ["finite", "another question"]


def test_a_file_that_changed_is_checked_again(another_process: Callable[[], None], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(3)}, path)
    read_weights(path)
    save_file({"a": torch.tensor([1, float("nan"), 1])}, path)
    for _ in range(2):  # a failure is not remembered
        with pytest.raises(ValueError, match="NaN or Inf in a"):
            read_weights(path)


def test_an_answer_outlives_the_content_it_was_found_for(another_process: Callable[[], None], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    Note(path, "digest").keep("abc")
    another_process()
    assert (Note(path, "digest").answer, Note(path, "digest").current) == ("abc", True)
    os.utime(path, ns=(1, 1))
    assert (Note(path, "digest").answer, Note(path, "digest").current) == ("abc", False)
    assert Note(path, "another").answer == ""


def test_a_link_is_the_file_it_leads_to(another_process: Callable[[], None], tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("content")
    (tmp_path / "link").symlink_to("blob")
    Note(tmp_path / "link", "digest").keep("abc")
    assert Note(tmp_path / "blob", "digest").current


@pytest.mark.parametrize("content", ["", "[]", '{"answer": "abc"}', "\x00"])
def test_a_damaged_note_is_no_answer_to_rely_on(
    another_process: Callable[[], None], tmp_path: Path, content: str
) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    Note(path, "digest").keep("abc")
    (note,) = (tmp_path / "cache" / "checked").iterdir()
    note.write_text(content)
    another_process()
    assert not Note(path, "digest").current


def test_where_the_cache_cannot_be_written_the_process_remembers(
    another_process: Callable[[], None], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("not a folder")
    path = tmp_path / "file"
    path.write_text("content")
    Note(path, "digest").keep("abc")
    assert Note(path, "digest").current
    another_process()
    assert not Note(path, "digest").current
