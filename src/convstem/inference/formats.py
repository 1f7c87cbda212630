"""The formats of other runtimes: how each is written and run, a thin edge over its own exporter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convstem.errors import MissingPackageError


def _write_program(program: torch.export.ExportedProgram, out: Path, opset: int | None) -> None:
    torch.export.save(program, out)


def _run_program(out: Path, images: Tensor) -> Tensor:
    return torch.export.load(out).module()(images)


def _write_onnx(program: torch.export.ExportedProgram, out: Path, opset: int | None) -> None:
    converted: Any = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
    )
    batch = converted.model.graph.inputs[0].shape[0]
    if not isinstance(batch, int) and hasattr(converted, "rename_axes"):  # an older torch has not
        converted.rename_axes({batch: "batch"})
    converted.save(out)


def _run_onnx(out: Path, images: Tensor) -> Tensor:
    runtime: Any = import_module("onnxruntime")
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def _write_openvino(program: torch.export.ExportedProgram, out: Path, opset: int | None) -> None:
    openvino: Any = import_module("openvino")
    openvino.save_model(openvino.convert_model(program), out, compress_to_fp16=False)


def _run_openvino(out: Path, images: Tensor) -> Tensor:
    openvino: Any = import_module("openvino")
    compiled = openvino.Core().compile_model(out, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled(images.numpy())[0])


def _write_executorch(program: torch.export.ExportedProgram, out: Path, opset: int | None) -> None:
    exir: Any = import_module("executorch.exir")
    xnnpack: Any = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    with out.open("wb") as file:
        lowered.to_executorch().write_to_file(file)


def _run_executorch(out: Path, images: Tensor) -> Tensor:
    runtime: Any = import_module("executorch.runtime").Runtime.get()
    return runtime.load_program(out).load_method("forward").execute([images])[0]


@dataclass(frozen=True)
class Format:
    """One format: what it needs, and how it is written and run."""

    suffix: str
    write: Callable[[torch.export.ExportedProgram, Path, int | None], None]
    """Writes a program to a file; the number is ONNX's operator set, and of no matter to the others."""
    run: Callable[[Path, Tensor], Tensor]
    """Runs a written file on images."""
    runtime: str
    """Package that ``run`` needs."""
    packages: tuple[str, ...] = ()
    """Packages that ``write`` needs."""
    dynamic: bool = True
    """Whether it takes any batch."""


FORMATS = {
    "executorch": Format(".pte", _write_executorch, _run_executorch, "executorch", ("executorch",), dynamic=False),
    "onnx": Format(".onnx", _write_onnx, _run_onnx, "onnxruntime", ("onnx", "onnxscript")),
    "openvino": Format(".xml", _write_openvino, _run_openvino, "openvino", ("openvino",)),
    "torch-export": Format(".pt2", _write_program, _run_program, "torch"),
}
"""Every format by the name that ``export`` takes."""


def check_packages(to: str) -> None:
    """Raise ``MissingPackageError`` naming what to install to write a format."""
    needed = FORMATS[to].packages
    for package in needed:
        if not installed(package):
            raise MissingPackageError(
                f"the format {to} needs {package}, which is not installed: pip install {' '.join(needed)}"
            )


def installed(package: str) -> bool:
    """Tell whether a package is installed, without importing it."""
    return find_spec(package) is not None
