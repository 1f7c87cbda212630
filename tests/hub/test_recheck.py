"""``convstem cache verify`` finds damage that changes neither size nor modification time."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import timm
from click.testing import CliRunner

from convstem.cli.main import main
from convstem.files import cache
from convstem.hub.locate import check_sha256
from convstem.registry import catalog, tables


def verify(status: int) -> dict[str, str]:
    done = CliRunner().invoke(main, ["cache", "verify", "--json"])
    assert done.exit_code == status, done.output
    return {Path(row["file"]).name: row["state"] for row in json.loads(done.output)}


def damage(path: Path) -> None:
    """Flip a bit but keep size and modification time, like a dying disk."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A verified copy of the embedded weights, with its own cache."""
    monkeypatch.setenv("CONVSTEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_NOTES", {})
    entry = catalog.weights()["vit_nano4_convstem.cifar10"]
    path = tmp_path / "weights.safetensors"
    shutil.copyfile(tables.data_dir("registry") / str(entry.file), path)
    check_sha256(path, str(entry.sha256))
    return path


def test_a_full_recheck_finds_what_size_and_time_hide(weights: Path) -> None:
    expected = str(catalog.weights()["vit_nano4_convstem.cifar10"].sha256)
    assert verify(0) == {weights.name: "right"}
    damage(weights)
    check_sha256(weights, expected)  # passes, since the file was verified before
    assert verify(1) == {weights.name: "damaged"}
    with pytest.raises(ValueError, match="is damaged"):
        check_sha256(weights, expected)


def test_changed_and_missing_files_are_no_damage(weights: Path) -> None:
    weights.touch()
    assert verify(0) == {weights.name: "changed"}
    weights.unlink()
    assert verify(0) == {weights.name: "gone"}
    assert verify(0) == {}


def test_a_file_that_cannot_be_read_is_as_bad_as_a_damaged_one(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("convstem.hub.repo_cache.file_digest", refuse)
    assert verify(1) == {weights.name: "unreadable"}


def test_a_cache_that_may_not_be_read_is_never_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("CONVSTEM_CACHE", str(tmp_path / "theirs"))
    monkeypatch.setattr(cache, "_NOTES", {})
    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert timm.create_model("vit_nano4_convstem", pretrained=True)
