"""Folders that appear complete or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convstem.files.staging import replacing, scratch_folder

NAMES = ("README.md", "config.json", "model.safetensors")

# Writes new files, and is killed before the n-th replacement.
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
with replacing(folder, last="config.json") as staged:
    for name in ("README.md", "config.json", "model.safetensors"):
        (staged / name).write_text("new")
"""


def write(folder: Path, text: str, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_kill_leaves_no_mixture_and_the_next_run_sweeps(survived: int, tmp_path: Path) -> None:
    write(tmp_path, "old")
    (tmp_path / "mine.txt").write_text("mine")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(survived)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "config.json").exists()  # so nothing takes the folder for a whole one
    with replacing(tmp_path, last="config.json") as staged:
        write(staged, "newer")
    assert contents(tmp_path) == {**dict.fromkeys(NAMES, "newer"), "mine.txt": "mine"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_error_changes_nothing(error: BaseException, tmp_path: Path) -> None:
    write(tmp_path, "old")
    with pytest.raises(type(error)), replacing(tmp_path, last="config.json") as staged:
        write(staged, "new", NAMES[:2])
        raise error
    assert contents(tmp_path) == dict.fromkeys(NAMES, "old")


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
