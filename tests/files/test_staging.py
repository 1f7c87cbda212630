"""Folders are written completely or not at all."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from convstem.errors import ExistingPathError
from convstem.files.staging import replacing, scratch_folder

NAMES = ("README.md", "config.json", "model.safetensors")

# Writes new files and is killed before the n-th move.
KILLED = """
import os, signal, sys
from pathlib import Path
from convstem.files.staging import replacing
folder, survived = Path(sys.argv[1]), int(sys.argv[2])
replace, calls = os.replace, []
def counted(*args):
    if len(calls) == survived:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(args)
    return replace(*args)
os.replace = counted
with replacing(folder, last="config.json", overwrite=True) as staged:
    for name in ("README.md", "config.json", "model.safetensors"):
        (staged / name).write_text("new")
"""


def write(folder: Path, text: str, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("survived", range(6))
def test_a_kill_leaves_no_mixture_and_the_next_run_sweeps(survived: int, tmp_path: Path) -> None:
    write(tmp_path, "old")
    (tmp_path / "mine.txt").write_text("mine")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(survived)], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = contents(tmp_path)
    assert "config.json" not in left or set(left.values()) == {"old", "mine"}  # a mixture cannot pass for a model
    with replacing(tmp_path, last="config.json", overwrite=True) as staged:
        write(staged, "newer")
    assert contents(tmp_path) == {**dict.fromkeys(NAMES, "newer"), "mine.txt": "mine"}
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_error_changes_nothing(error: BaseException, tmp_path: Path) -> None:
    write(tmp_path, "old")
    with pytest.raises(type(error)), replacing(tmp_path, last="config.json", overwrite=True) as staged:
        write(staged, "new", NAMES[:2])
        raise error
    assert contents(tmp_path) == dict.fromkeys(NAMES, "old")


@pytest.mark.parametrize("move", range(5))
def test_an_error_among_the_moves_puts_everything_back(
    move: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moves can fail for another user's file in a folder with the sticky bit, an immutable file, ..."""
    write(tmp_path, "old", NAMES[1:])
    real, moves = os.replace, iter(range(99))

    def refuse(origin: Path, place: Path) -> None:
        if next(moves) == move:
            raise PermissionError(errno.EPERM, "refused")
        real(origin, place)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), replacing(tmp_path, last="config.json", overwrite=True) as staged:
        write(staged, "new")
    assert contents(tmp_path) == dict.fromkeys(NAMES[1:], "old")
    assert len(list(tmp_path.iterdir())) == 2
    with replacing(tmp_path, last="config.json", overwrite=True) as staged:  # negative control: more moves than errors
        write(staged, "new")
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


def test_what_is_there_is_replaced_only_on_request(tmp_path: Path) -> None:
    write(tmp_path, "mine", NAMES[:2])
    message = "has README.md and config.json already: name another folder, or replace.*overwrite=True"
    with pytest.raises(ExistingPathError, match=message), replacing(tmp_path, last="config.json") as staged:
        write(staged, "new")
    assert contents(tmp_path) == dict.fromkeys(NAMES[:2], "mine")
    with replacing(tmp_path, last="config.json", overwrite=True) as staged:
        write(staged, "new")
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


def test_a_folder_in_the_place_of_a_file_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path, "old", NAMES[1:])
    (tmp_path / "README.md").mkdir()
    (tmp_path / "README.md" / "mine.txt").touch()
    match = "has a folder README.md where a file must go"
    with pytest.raises(ExistingPathError, match=match), replacing(tmp_path, "config.json", overwrite=True) as staged:
        write(staged, "new")
    assert contents(tmp_path) == dict.fromkeys(NAMES[1:], "old")
    assert (tmp_path / "README.md" / "mine.txt").exists()


def test_the_same_files_are_not_touched(tmp_path: Path) -> None:
    write(tmp_path, "same")
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    with replacing(tmp_path, last="config.json") as staged:
        write(staged, "same")
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before
    with replacing(tmp_path, last="config.json", overwrite=True) as staged:
        write(staged, "same", NAMES[:2])
        write(staged, "other", NAMES[2:])
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert {name for name in NAMES if after[name] != before[name]} == {"model.safetensors"}


def test_what_belonged_to_the_old_files_goes_with_them(tmp_path: Path) -> None:
    write(tmp_path, "old")
    with (
        pytest.raises(ExistingPathError, match="has config.json and model.safetensors already"),
        replacing(tmp_path, "config.json", belonging=NAMES[1:]) as staged,
    ):
        write(staged, "new", NAMES[2:])
    with replacing(tmp_path, "config.json", belonging=NAMES[1:], overwrite=True) as staged:
        write(staged, "new", NAMES[2:])
    assert contents(tmp_path) == {"README.md": "old", "model.safetensors": "new"}


def test_folders_that_were_made_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), replacing(tmp_path / "a" / "b", last="config.json"):
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


def test_one_at_a_time(tmp_path: Path) -> None:
    entered = threading.Event()

    def other() -> None:
        with replacing(tmp_path / "." / "m", last="config.json", overwrite=True) as staged:
            entered.set()
            write(staged, "theirs")

    thread = threading.Thread(target=other)
    with replacing(tmp_path / "m", last="config.json") as staged:
        thread.start()
        assert not entered.wait(0.5)
        write(staged, "ours")
    assert entered.wait(30)
    thread.join()
    assert contents(tmp_path / "m") == dict.fromkeys(NAMES, "theirs")


def test_a_process_that_is_just_starting_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tempfile.mkdtemp

    def interrupted(**options: Any) -> str:
        folder = real(**options)
        Path(folder, ".lock").touch()  # the lock file exists for a moment before it is held
        monkeypatch.setattr(tempfile, "mkdtemp", real)
        with scratch_folder(tmp_path, "convstem-push-"):
            pass
        assert Path(folder, ".lock").exists()
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", interrupted)
    with scratch_folder(tmp_path, "convstem-push-") as mine:
        (mine / "file").touch()
        assert [path.name.startswith("convstem-push-") for path in tmp_path.iterdir()] == [True]
    assert list(tmp_path.iterdir()) == []


def test_only_dead_processes_folders_are_swept(tmp_path: Path) -> None:
    stranger = tmp_path / "convstem-push-notes"
    stranger.mkdir()
    with scratch_folder(tmp_path, "convstem-push-") as alive, scratch_folder(tmp_path, "convstem-push-") as second:
        assert alive.is_dir()
        assert second.is_dir()
    assert list(tmp_path.iterdir()) == [stranger]
    (stranger / ".lock").touch()
    with scratch_folder(tmp_path, "convstem-push-"):
        assert not stranger.exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to own a folder as another user")
def test_another_users_folder_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "convstem-push-x"
    theirs.mkdir()
    (theirs / ".lock").touch()
    os.chown(theirs, 12345, 12345)
    with scratch_folder(tmp_path, "convstem-push-"):
        assert theirs.exists()
