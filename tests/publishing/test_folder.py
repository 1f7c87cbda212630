"""The folder writer replaces no user's file unasked, and leaves one whole model or the old content."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner

import convstem
from convstem.cli.main import main
from convstem.errors import ArgumentError, ExistingPathError, PathError
from convstem.publishing.convert import convert_to_folder
from convstem.publishing.derived import transplant_to_folder
from convstem.publishing.folder import write_folder
from tests.support.assertions import randomise

NANO = "vit_nano4_convstem"
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patchify model and one of ours as folders, and a checkpoint."""
    root = tmp_path_factory.mktemp("sources")
    plain = randomise(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3))
    timm.models.save_for_hf(plain, root / "plain", safe_serialization=True)
    convstem.pull(NANO, out=root / "ours")
    model = timm.create_model(NANO, stem_norm="batchnorm2d")
    timm.models.save_for_hf(model, root / "batchnorm", safe_serialization=True)
    torch.save(timm.create_model(NANO, pretrained=True).state_dict(), root / "w.pth")
    return root


def command(*arguments: Any) -> None:
    done = CliRunner().invoke(main, ["--debug", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output


# Writes a model of the sources into a folder, with overwrite=True if asked.
WRITERS: dict[str, Callable[..., Any]] = {
    "convert": lambda root, out, **options: convert_to_folder(root / "w.pth", out, **options),
    "transplant": lambda root, out, **options: transplant_to_folder(root / "plain", out, **options),
    "convert and transplant": lambda root, out, **options: convert_to_folder(
        root / "plain", out, transplanted=True, num_heads=3, **options
    ),
    "fold": lambda root, out, overwrite=False: command(
        *("fold", root / "batchnorm", "--out", out, *["--overwrite"] * overwrite)
    ),
    "pull": lambda root, out, **options: convstem.pull(NANO, out=out, **options),
    "pull, on the command line": lambda root, out, overwrite=False: command(
        *("pull", NANO, "--out", out, *["--overwrite"] * overwrite)
    ),
}

writers = pytest.mark.parametrize("how", WRITERS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@writers
@pytest.mark.parametrize("name", FILES)
def test_no_file_that_is_there_is_replaced_unasked(how: str, name: str, sources: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("MINE")
    (tmp_path / "train.py").write_text("x")
    before = contents(tmp_path)
    with pytest.raises(ExistingPathError, match=f"has {name} already: name another folder, or replace.*--overwrite"):
        WRITERS[how](sources, tmp_path)
    assert contents(tmp_path) == before


@writers
def test_on_request_the_whole_model_is_replaced(how: str, sources: Path, tmp_path: Path) -> None:
    for name in (*FILES, "train.py"):
        (tmp_path / name).write_text("MINE")
    WRITERS[how](sources, tmp_path, overwrite=True)
    assert sorted(contents(tmp_path)) == [*FILES, "train.py"]
    assert (tmp_path / "train.py").read_text() == "MINE"
    assert convstem.load(tmp_path)
    WRITERS[how](sources, tmp_path, overwrite=True)  # over its own files


@writers
def test_an_error_leaves_what_was_there(
    how: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convstem.pull(NANO, out=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "mine": True}))
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    (tmp_path / "README.md" / "notes").touch()
    before = {name: (tmp_path / name).read_bytes() for name in FILES[1:]}
    with pytest.raises(PathError, match="README.md"):
        WRITERS[how](sources, tmp_path, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in FILES[1:]} == before
    assert (tmp_path / "README.md" / "notes").exists()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("source", "write"),
    [
        ("plain", lambda path: transplant_to_folder(path, path, overwrite=True)),
        ("plain", lambda path: convert_to_folder(path, path, overwrite=True)),
        ("ours", lambda path: command("fold", path, "--out", path, "--overwrite")),
        ("ours", lambda path: convert_to_folder(path / "model.safetensors", path, overwrite=True)),
    ],
)
def test_a_model_is_not_written_over_its_source(
    source: str, write: Callable[[Path], Any], sources: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(sources / source, folder)
    before = contents(folder)
    with pytest.raises(ArgumentError, match="holds the source: name another folder to write"):
        write(folder)
    assert contents(folder) == before


def test_a_checkpoint_may_lie_where_the_model_is_written(sources: Path, tmp_path: Path) -> None:
    shutil.copy(sources / "w.pth", tmp_path)
    convert_to_folder(tmp_path / "w.pth", tmp_path)
    assert sorted(contents(tmp_path)) == [*FILES, "w.pth"]


def test_the_same_model_pulled_again_disturbs_nobody(tmp_path: Path) -> None:
    folder = convstem.pull(NANO, out=tmp_path)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    convstem.pull(NANO, out=tmp_path)
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_a_repository_pulled_again_is_linked_not_copied(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convstem.hub.read import HubFile
    from convstem.publishing import pull as pulling

    files = {name: HubFile(sources / "ours" / name, "org/m", "0" * 40, None) for name in FILES}
    monkeypatch.setattr(pulling, "fetch_all", lambda *args, **options: files)
    convstem.pull("org/m", out=tmp_path / "m")
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "m").iterdir()}
    copied: list[Any] = []
    monkeypatch.setattr(shutil, "copyfile", lambda *args: copied.append(args))
    convstem.pull("org/m", out=tmp_path / "m")
    assert copied == []
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "m").iterdir()} == before


def test_another_layout_is_not_mixed_with_a_model(sources: Path, tmp_path: Path) -> None:
    convstem.pull(NANO, out=tmp_path)
    with pytest.raises(ExistingPathError, match="has config.json and model.safetensors already"):
        convert_to_folder(sources / "w.pth", tmp_path, target="torchvision")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ExistingPathError, match="has config.json already"):
        convert_to_folder(sources / "w.pth", tmp_path, target="torchvision")
    convert_to_folder(sources / "w.pth", tmp_path, target="torchvision", overwrite=True)
    assert sorted(contents(tmp_path)) == ["README.md", "model.safetensors"]


def test_nothing_is_made_before_a_folder_is_refused(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: Any, **options: Any) -> None:
        raise AssertionError("worked")

    monkeypatch.setattr("convstem.publishing.convert.read_checkpoint", work)
    monkeypatch.setattr("convstem.publishing.derived.create_source", work)
    monkeypatch.setattr("convstem.load", work)
    (tmp_path / "config.json").touch()
    for how in ("convert", "transplant", "fold"):
        with pytest.raises(ExistingPathError):
            WRITERS[how](sources, tmp_path)
    with pytest.raises(AssertionError, match="worked"):  # negative control
        WRITERS["convert"](sources, tmp_path / "new")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PathError, match="cannot write .*Permission denied"):
        write_folder(tmp_path, lambda staged: None)


def test_what_was_written_is_returned(tmp_path: Path) -> None:
    assert write_folder(tmp_path / "m", lambda staged: (staged / "config.json").write_text("{}")) == 2
    assert contents(tmp_path / "m") == {"config.json": b"{}"}
