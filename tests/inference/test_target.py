"""Impossible exports are refused before any slow step."""

from pathlib import Path

import pytest

from convstem import inference
from convstem.errors import ArgumentError, ExistingPathError, MissingPackageError
from convstem.inference import FORMATS, OPSETS, check_target


@pytest.fixture(autouse=True)
def everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "installed", lambda package: True)


def test_what_can_be_written(tmp_path: Path) -> None:
    for to, format in FORMATS.items():
        check_target(to, tmp_path / f"m{format.suffix}")
    for opset in (OPSETS[0], OPSETS[-1]):
        check_target("onnx", tmp_path / "m.onnx", opset)


@pytest.mark.parametrize(
    ("to", "name", "opset", "message"),
    [
        ("tflite", "m.onnx", None, "to must be one of"),
        ("onnx", "m.pt2", None, "a file of the format onnx ends in .onnx; got m.pt2"),
        ("onnx", "m.onnx", OPSETS[0] - 1, rf"opset must be from {OPSETS[0]} to {OPSETS[-1]}, .*; got {OPSETS[0] - 1}"),
        ("onnx", "m.onnx", OPSETS[-1] + 1, f"opset must be from .*; got {OPSETS[-1] + 1}"),
        (
            "torch-export",
            "m.pt2",
            OPSETS[0],
            f"opset .* onnx .*; got opset={OPSETS[0]} for torch-export",
        ),
    ],
)
def test_what_cannot(to: str, name: str, opset: int | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_target(to, tmp_path / name, opset)


def test_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ExistingPathError, match=r"m\.onnx exists: name another file"):
        check_target("onnx", tmp_path / "m.onnx")


def test_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "installed", lambda package: False)
    with pytest.raises(MissingPackageError, match="the format onnx needs .*: pip install "):
        check_target("onnx", tmp_path / "m.onnx")
