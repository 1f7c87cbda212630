"""A file is written whole or not at all."""

from pathlib import Path

import pytest

from convstem.files.paths import write_whole


def test_the_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    write_whole(path, lambda temporary: temporary.write_text(f"after {path.read_text()}"))
    assert path.read_text() == "after before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_after_an_error_nothing_has_changed(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_whole(path, write)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
