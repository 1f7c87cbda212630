"""A repository's text files are read in the usual encodings, and refused if too large."""

import codecs
from pathlib import Path

import pytest

from convstem.errors import InvalidFileError
from convstem.hub import config
from convstem.hub.config import read_text


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_utf_8(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(mark + "{ä}\r\n".encode())
    assert read_text(tmp_path / "a.json") == "{ä}\n"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_with_a_mark(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes("\ufeff{ä}".encode(encoding))
    assert read_text(tmp_path / "a.json") == "{ä}"


def test_the_largest_and_one_byte_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LARGEST_TEXT", 4)
    (tmp_path / "a.json").write_text("1234")
    assert read_text(tmp_path / "a.json") == "1234"
    (tmp_path / "a.json").write_text("12345")
    with pytest.raises(InvalidFileError, match="a.json is 5 bytes; at most 4 are read"):
        read_text(tmp_path / "a.json")
