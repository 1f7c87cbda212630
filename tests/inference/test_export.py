"""Each export is run by its own runtime and compared with the model, for the plain ViT and for ours."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import timm
import torch
import torchvision
from torch import nn

from convstem.errors import ArgumentError, ExistingPathError, MissingPathError, PathError
from convstem.inference import FORMATS, OPSETS, _Patient, compare, example, export, installed, trace
from tests.support.assertions import randomise
from tests.support.checkout import ROOT

SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 3, "num_classes": 7}


def ours() -> nn.Module:
    return timm.create_model("vit_nano4_convstem", pretrained=True).eval()


def plain() -> nn.Module:
    return randomise(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, **SMALL)).eval()


def twin() -> nn.Module:
    return torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT").eval()


MODELS = {"plain": plain, "timm": ours, "torchvision": twin}


@pytest.mark.full
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_computes_the_same(name: str, to: str, tmp_path: Path) -> None:
    if to == "executorch" and not installed("executorch"):
        pytest.skip("executorch is not installed: it brings coremltools and ten more, too much for the test extra")
    model = MODELS[name]()
    result = export(model, to, tmp_path / f"model{FORMATS[to].suffix}")
    assert result.inputs == ("batch" if FORMATS[to].dynamic else 1, 3, 32, 32)
    assert result.difference is not None, f"{FORMATS[to].runtime} is part of the test extra"
    assert result.difference < 1e-4
    if to == "onnx":
        graph = onnx.load(result.path).graph
        assert [graph.input[0].name, graph.output[0].name] == ["images", "logits"]
        assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert result.bytes > 4 * 0.9 * sum(p.numel() for p in model.parameters())  # float32, all of it


@pytest.mark.full
@pytest.mark.parametrize("name", ["plain", "timm"])
def test_a_file_with_other_weights_is_noticed(name: str, tmp_path: Path) -> None:
    """Negative control of ``export``'s own comparison."""
    model = MODELS[name]()
    out = tmp_path / "model.pt2"
    assert export(model, "torch-export", out).difference == 0
    with torch.no_grad():
        model.head.bias += 1
    assert compare(model, FORMATS["torch-export"].run, out, example(model)) > 1e-2


def test_a_model_whose_outputs_are_zero_has_a_difference_too() -> None:
    model = torchvision.models.get_model("vit_nano_4_convstem").eval()  # torchvision's untrained head outputs 0
    assert compare(model, lambda out, images: model(images), Path(), example(model)) == 0


@pytest.mark.full
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_any_image_size_where_the_model_has_it(to: str, tmp_path: Path) -> None:
    model = timm.create_model("vit_nano4_convstem", pretrained=True, dynamic_img_size=True).eval()
    out = tmp_path / f"model{FORMATS[to].suffix}"
    assert export(model, to, out).inputs == ("batch", 3, "height", "width")
    images, partial = torch.randn(3, 3, 40, 24), torch.randn(3, 3, 42, 26)  # partial: no multiple of the patch size
    with torch.no_grad():
        expected, rounded_up = model(images), model(partial)
    assert (FORMATS[to].run(out, images) - expected).abs().max() < 1e-4
    try:
        found = FORMATS[to].run(out, partial)
    except Exception:  # each runtime has its own error
        return
    assert (found - rounded_up).abs().max() < 1e-4  # never a silently different result


@pytest.mark.full
@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_the_opset_asked_for_is_written(opset: int, tmp_path: Path) -> None:
    import onnx

    out = tmp_path / "model.onnx"
    result = export(ours(), "onnx", out, opset=opset)
    versions = {entry.domain: entry.version for entry in onnx.load(out).opset_import}
    assert versions[""] == opset
    assert result.difference is not None
    assert result.difference < 1e-4


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ours()
    with pytest.raises(ValueError, match=r"to must be one of executorch, onnx, openvino, torch-export; got 'tflite'"):
        export(model, "tflite", tmp_path / "m.tflite")
    with pytest.raises(ArgumentError, match=r"ends in \.onnx; got m\.pt2"):
        export(model, "onnx", tmp_path / "m.pt2")
    with pytest.raises(ArgumentError, match=r"opset must be from 18 to 23, which torch's exporter writes; got 7"):
        export(model, "onnx", tmp_path / "m.onnx", opset=7)
    with pytest.raises(ArgumentError, match=r"opset applies to onnx only"):
        export(model, "torch-export", tmp_path / "m.pt2", opset=18)
    with pytest.raises(ArgumentError, match=r"training mode .* call model.eval\(\) first"):
        export(ours().train(), "onnx", tmp_path / "m.onnx")
    any_size = timm.create_model("vit_nano4_convstem", dynamic_img_size=True).eval()
    with pytest.raises(ArgumentError, match=r"OpenVINO cannot resample positions .* without dynamic_img_size"):
        export(any_size, "openvino", tmp_path / "m.xml")
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ExistingPathError, match=r"m\.onnx exists: name another file"):
        export(model, "onnx", tmp_path / "m.onnx")
    monkeypatch.setattr("convstem.inference.installed", lambda package: package != "onnxscript")
    with pytest.raises(
        ModuleNotFoundError, match=r"needs onnxscript, which is not installed: pip install onnx onnxscript"
    ):
        export(model, "onnx", tmp_path / "n.onnx")


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_one_graph_for_every_batch_without_breaks(name: str) -> None:
    model = MODELS[name]()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        images = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            assert (compiled(images) - model(images)).abs().max() < 1e-4


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_ahead_of_time_inductor(name: str, tmp_path: Path) -> None:
    """The compiled package runs without the model's Python code."""
    from torch import _inductor as inductor

    model = MODELS[name]()
    package = inductor.aoti_compile_and_package(trace(model, example(model)), package_path=str(tmp_path / "model.pt2"))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        assert (inductor.aoti_load_package(package)(images) - expected).abs().max() < 1e-4


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_torchscript(name: str, tmp_path: Path) -> None:
    """torch deprecates TorchScript, but both hosts still support it."""
    model = MODELS[name]()
    torch.jit.script(model).save(tmp_path / "model.pt")
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert (torch.jit.load(tmp_path / "model.pt")(images) - model(images)).abs().max() < 1e-4


@pytest.mark.parametrize("to", FORMATS)
def test_a_missing_folder_is_said_before_anything_else(to: str, tmp_path: Path) -> None:
    if not all(map(installed, FORMATS[to].packages)):
        pytest.skip(f"{to} is not installed")
    out = tmp_path / "none" / f"m{FORMATS[to].suffix}"
    with pytest.raises(MissingPathError, match=r"there is no folder .*none for m\.\w+: create it first"):
        export(nn.Identity(), to, out)
    assert not out.parent.exists()


def test_what_a_format_writes_besides_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"somebody's")
    with pytest.raises(ExistingPathError, match=r"m\.bin exists"):
        export(ours(), "openvino", tmp_path / "m.xml")
    assert (tmp_path / "m.bin").read_bytes() == b"somebody's"


FULL = """
import resource, sys, pathlib
from tests.inference.test_export import ours
from convstem.inference import export
from convstem.errors import PathError
model, out = ours(), pathlib.Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # the model has 2.4 MB
try:
    export(model, sys.argv[2], out)
except PathError as error:
    print(error)
"""


def test_torchs_writer_sees_no_error_but_keeps_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> None:
        raise OSError(text)

    with (tmp_path / "m").open("wb", buffering=0) as file:
        writer = _Patient(file)
        assert (writer.write(b"abc"), writer.tell(), writer.seek(1), writer.error) == (3, 3, 1, None)
        monkeypatch.setattr(writer, "file", SimpleNamespace(closed=False, write=lambda data: fail("full"), flush=fail))
        assert writer.write(b"defg") == 4
        writer.flush()
    assert str(writer.error) == "full"
    assert (tmp_path / "m").read_bytes() == b"abc"


@pytest.mark.full
@pytest.mark.parametrize("to", ["torch-export", pytest.param("onnx", marks=pytest.mark.full)])
def test_a_file_that_cannot_be_written_whole_is_not_there(to: str, tmp_path: Path) -> None:
    """torch's own writer aborts the process on a full disk."""
    out = tmp_path / f"m{FORMATS[to].suffix}"
    done = subprocess.run([sys.executable, "-c", FULL, str(out), to], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"cannot write .*: File too large", done.stdout), (done.stdout, done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convstem.inference.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(PathError, match="the parameters take 2 MB and the disk has 0 MB left; free some space"):
        export(ours(), "openvino", tmp_path / "m.xml")
    assert list(tmp_path.iterdir()) == []


def test_what_an_export_says_and_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a program that no exporter made."""
    node = SimpleNamespace(name="x", meta={"val": SimpleNamespace(shape=("s0", 3, 32, 32))})
    signature = SimpleNamespace(user_inputs=["x"])
    program = SimpleNamespace(graph=SimpleNamespace(nodes=[node]), graph_signature=signature)
    fake = replace(FORMATS["onnx"], write=lambda program, out, opset: out.write_bytes(b"1234"), runtime="none_such")
    monkeypatch.setattr("convstem.inference.trace", lambda *_: program)
    monkeypatch.setitem(FORMATS, "onnx", fake)
    with caplog.at_level("INFO", logger="convstem.progress"):
        result = export(ours(), "onnx", tmp_path / "m.onnx")
    assert (result.bytes, result.inputs, result.difference) == (4, ("batch", 3, 32, 32), None)
    steps = [record.getMessage() for record in caplog.records]
    assert steps == ["tracing the model", "writing m.onnx", "comparing m.onnx with the model"]


def test_an_onnx_graph_has_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    renamed: list[Any] = []
    saved: list[Path] = []
    graph = SimpleNamespace(inputs=[SimpleNamespace(shape=["s77"])])
    made = SimpleNamespace(model=SimpleNamespace(graph=graph), rename_axes=renamed.append, save=saved.append)
    monkeypatch.setattr(torch.onnx, "export", lambda program, **options: asked.update(options) or made)
    FORMATS["onnx"].write(None, tmp_path / "m.onnx", 20)
    names = {"input_names": ["images"], "output_names": ["logits"]}
    assert asked == {"dynamo": True, "opset_version": 20, "verbose": False, **names}
    assert (renamed, saved) == ([{"s77": "batch"}], [tmp_path / "m.onnx"])
