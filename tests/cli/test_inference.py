"""``convstem export``."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from convstem.cli.main import main
from convstem.inference import Exported


@pytest.mark.full
def test_export_writes_and_compares(tmp_path: Path) -> None:
    out = tmp_path / "nano.pt2"
    done = CliRunner().invoke(
        main, ["export", "vit_nano4_convstem", "--to", "torch-export", "--out", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.output)
    assert result["bytes"] == out.stat().st_size
    assert result["inputs"] == ["batch", 3, 32, 32]
    assert result["difference"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--to", "tflite", "--out", "x.tflite"],
            "to must be one of executorch, onnx, openvino, torch-export; got 'tflite'",
        ),
        (["--to", "onnx", "--out", "x.pt2"], "a file of the format onnx ends in .onnx; got x.pt2"),
        (
            ["--to", "onnx", "--out", "x.onnx", "--opset", "7"],
            "opset must be from 18 to 23, which torch's exporter writes; got 7",
        ),
    ],
)
def test_a_wrong_target_is_one_line(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(main, ["export", "vit_nano4_convstem", *arguments])
    assert done.exit_code == 1
    assert done.output == f"Error: {sentence}\n"


@pytest.mark.parametrize(
    ("difference", "said"), [(2.5e-7, "to the model: 2.5e-07 of"), (None, "`pip install onnxruntime`")]
)
def test_what_was_compared_is_said(difference: float | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def export(model: Any, to: str, out: Path, opset: int | None) -> Exported:
        asked.append((model.dynamic_img_size, to, out, opset))
        return Exported(out, to, 2_500_000, ("batch", 3, 32, 32), difference)

    monkeypatch.setattr("convstem.inference.export", export)
    call = ["export", "vit_nano4_convstem", "--to", "onnx", "--out", "x.onnx", "--opset", "20", "--dynamic-size"]
    done = CliRunner().invoke(main, call)
    assert asked == [(True, "onnx", Path("x.onnx"), 20)]
    first, second = done.output.splitlines()
    assert first == "x.onnx: onnx, 2.5 MB, images batch x 3 x 32 x 32"
    assert said in second
