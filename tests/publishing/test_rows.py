"""The output of `convstem convert`, row by row."""

from pathlib import Path
from typing import Any

import pytest

from convstem.layouts.conversion import ConversionReport
from convstem.publishing.convert import ConversionResult

REPORT = ConversionReport(
    layout="dino", why="by its keys", path=("model", "backbone."), weights="raw", mapped={"a": ("b", "c"), "d": ("e",)},
    dropped={"x": "it is a head", "y": "it is a head"}, notes=("a note",),
)  # fmt: skip


class Transplanted:
    """A stand-in for a transplant's result."""

    measured_error = 0.00123

    class report:
        summary = staticmethod(lambda: "kept for every input")

    to_json = staticmethod(lambda: {"error": 0.00123})


def result(**changes: Any) -> ConversionResult:
    given = {"target": "timm", "architecture": "vit", "model_args": {"depth": 2}, "patchify": False, "report": REPORT}
    return ConversionResult("m.pth", Path("out"), **{**given, **changes})


def test_all_rows() -> None:
    assert result(check="equal").rows() == [
        ("m.pth", "out"),
        ("layout", "dino: by its keys"),
        ("inside", "model backbone."),
        ("weights", "raw"),
        ("architecture", "vit(depth=2)"),
        ("keys", "3 became 2"),
        ("left out", "2: it is a head"),
        ("note", "a note"),
        ("check", "equal"),
        ("written", "README.md, config.json, model.safetensors"),
    ]


def test_rows_that_not_every_result_has() -> None:
    told = dict(result(transplant=Transplanted(), patchify=True).rows())
    assert told["transplant"].startswith("kept for every input")
    assert told["error"] == "1.2e-03, against the source, relative"
    assert told[""] == "a plain (patchify) timm ViT; --transplant gives it a conv stem"


@pytest.mark.parametrize(
    ("target", "written"), [("timm", "README.md, config.json, model.safetensors"), ("torchvision", "model.safetensors")]
)
def test_what_is_written(target: str, written: str) -> None:
    assert dict(result(target=target).rows())["written"] == written


def test_as_json() -> None:
    assert result(transplant=Transplanted(), check="equal").to_json() == {
        "source": "m.pth", "folder": "out", "target": "timm", "architecture": "vit", "model_args": {"depth": 2},
        "patchify": False, "check": "equal", "report": REPORT.to_json(), "transplant": {"error": 0.00123},
    }  # fmt: skip
    assert result().to_json()["transplant"] is None
