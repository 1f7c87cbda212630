"""Prepares a model for inference: folds its BatchNorm and exports it to other runtimes.

Every format starts from one ``torch.export`` program and uses its own exporter. The written file is compared with the
model.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convstem.errors import ArgumentError, ExistingPathError, MissingPackageError, MissingPathError, PathError, warn
from convstem.files.paths import path_errors
from convstem.files.staging import replacing
from convstem.registry.stem_spec import choice
from convstem.stem.find import find_embed, find_stem
from convstem.stem.norms import fold_stem, stem_norm
from convstem.upstream import timm_set_metadata


def fold(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Return a model without BatchNorm in its stem and with the same outputs in eval mode.

    The result is an ordinary model with ``stem_norm="none"``: it can be saved, pushed, converted, exported and trained
    like any other. Folding is done in float64.

    Args:
        model: a conv-stem ViT of timm or torchvision in eval mode.
        inplace: change the model instead of a copy.

    Raises:
        ArgumentError: the model is in training mode, where BatchNorm uses the statistics of the batch.
        UnsupportedModelError: no conv stem, or one with SyncBatchNorm, hooks or parametrizations.

    Warns:
        UserWarning: the stem has no norm or LayerNorm, so nothing is folded; the model is returned unchanged.
    """
    stem = find_stem(model)
    norm = stem_norm(stem)
    if norm in ("layernorm2d", "none"):
        has = "already has no norm" if norm == "none" else "has LayerNorm, which depends on the image"
        warn(f"nothing was folded: the stem of this model {has}. The model is returned unchanged")
        return model
    if model.training or stem.training:
        raise ArgumentError(
            "a model in training mode cannot be folded, because its BatchNorm uses the statistics of the batch: call "
            "model.eval() first"
        )
    folded = model if inplace else copy.deepcopy(model)
    embed = find_embed(folded)
    if embed is None:
        fold_stem(find_stem(folded))
        return folded
    embed.fuse()
    timm_set_metadata(folded, {"stem_norm": "none", "stem_bias": True})
    return folded


_progress = logging.getLogger("convstem.progress")

LARGEST_BATCH = 1 << 16
"""Upper bound of the dynamic batch; exporters need one."""

LARGEST_GRID = 256
"""Upper bound of the dynamic rows and columns of patches."""

OPSETS = range(18, 24)
"""Operator sets that torch's dynamo exporter writes; lower ones need a conversion that loses precision."""


class _Patient(io.RawIOBase):
    """A binary file for torch's archive writer, which would abort the process on an exception. It stores the error.

    Args:
        file: written to until that fails.
    """

    error: OSError | None = None

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def writable(self) -> bool:
        """Return True; torch asks."""
        return True

    def seekable(self) -> bool:
        """Return True; torch asks."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move in the file."""
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in the file."""
        return self.file.tell()

    def write(self, data: Any) -> int:
        """Write, or store the error."""
        self._try(partial(self.file.write, data))
        return len(data)

    def flush(self) -> None:
        """Flush, or store the error."""
        self._try(self.file.flush)

    def _try(self, write: Callable[[], object]) -> None:
        if self.error is None and not self.file.closed:
            try:
                write()
            except OSError as error:
                self.error = error


def _write_program(program: torch.export.ExportedProgram, out: Path, opset: int | None) -> None:
    with out.open("wb", buffering=0) as file:
        patient = _Patient(file)
        torch.export.save(program, cast("Any", patient))
    if patient.error:
        raise patient.error


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
    if not isinstance(batch, int) and hasattr(converted, "rename_axes"):  # older torch versions lack it
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
    """How to write and run one format, and the packages needed."""

    suffix: str
    write: Callable[[torch.export.ExportedProgram, Path, int | None], None]
    """Writes a program to a file; the number is the operator set, used only by ONNX."""
    run: Callable[[Path, Tensor], Tensor]
    """Runs a written file on images."""
    runtime: str
    """Package that ``run`` needs."""
    packages: tuple[str, ...] = ()
    """Packages that ``write`` needs."""
    dynamic: bool = True
    """Whether the batch size is dynamic."""


FORMATS = {
    "executorch": Format(".pte", _write_executorch, _run_executorch, "executorch", ("executorch",), dynamic=False),
    "onnx": Format(".onnx", _write_onnx, _run_onnx, "onnxruntime", ("onnx", "onnxscript")),
    "openvino": Format(".xml", _write_openvino, _run_openvino, "openvino", ("openvino",)),
    "torch-export": Format(".pt2", _write_program, _run_program, "torch"),
}
"""Every format by the name that ``export`` takes."""


@dataclass(frozen=True)
class Exported:
    """The result of ``export``."""

    path: Path
    format: str
    bytes: int
    """Total size of the written files."""
    inputs: tuple[str | int, ...]
    """Shape of the images [batch, channels, height, width]; a dynamic size is a name."""
    difference: float | None
    """Largest difference from the model's outputs, relative to their largest value; None without the runtime."""


def export(model: nn.Module, to: str, out: Path, opset: int | None = None) -> Exported:
    """Write a model for another runtime, and compare the file with the model.

    The batch is dynamic. With ``dynamic_img_size=True`` the image size (in whole patches) is too. ExecuTorch plans its
    memory ahead, so it gets one image of the model's size.

    Args:
        model: a model of timm or torchvision in eval mode, on the CPU.
        to: ``executorch``, ``onnx``, ``openvino`` or ``torch-export``.
        out: the file to write: ``.pte``, ``.onnx``, ``.xml`` or ``.pt2``.
        opset: ONNX operator set; default: the exporter's own.

    Raises:
        ArgumentError: an unknown format, the wrong suffix, a model in training mode or, for OpenVINO, with a dynamic
            image size, or an operator set that the exporter does not have.
        ExistingPathError: ``out`` or one of its companion files exists.
        MissingPackageError: the format's packages are not installed; the message names them.
        MissingPathError: ``out``'s folder does not exist.
        PathError: a file system error, or no room on the disk; no partial file is left.
    """
    check_target(to, out, opset)
    target = FORMATS[to]
    if model.training:
        raise ArgumentError("a model in training mode would be exported with its dropout: call model.eval() first")
    if getattr(model, "dynamic_img_size", False) and to == "openvino":
        raise ArgumentError(
            "OpenVINO cannot resample positions (bicubic, antialiased), which a model with a dynamic image size needs: "
            "load it without dynamic_img_size (--dynamic-size), or export it to onnx or torch-export"
        )
    images = example(model)[: None if target.dynamic else 1]
    with quiet(), path_errors("write", out):
        _check_room(model, out)
        _progress.info("tracing the model")
        program = trace(model, images, target.dynamic)
        with replacing(out.parent, out.name) as staged:  # so that no partial file appears
            _progress.info("writing %s", out.name)
            target.write(program, staged / out.name, opset)
            _progress.info("comparing %s with the model", out.name)
            difference = compare(model, target.run, staged / out.name, images) if installed(target.runtime) else None
    size = sum(path.stat().st_size for path in (out, *companions(out)))
    return Exported(out, to, size, input_shape(program), difference)


def companions(out: Path) -> list[Path]:
    """Return the files beside ``out`` that belong to it: weights of OpenVINO, or of an ONNX graph over 2 GB."""
    return [path for path in _beside(out) if path.exists()]


def _beside(out: Path) -> list[Path]:
    """Return the companion files that ``out``'s format may write."""
    more = {".onnx": [Path(f"{out}.data")], ".xml": [out.with_suffix(".bin")]}
    return more.get(out.suffix, [])


def _check_room(model: nn.Module, out: Path) -> None:
    """Raise ``PathError`` if the parameters do not fit on the disk: some exporters would not notice."""
    needed, free = sum(parameter.nbytes for parameter in model.parameters()), shutil.disk_usage(out.parent).free
    if free < needed:
        raise PathError(
            f"cannot write {out}: the parameters take {needed / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB left; "
            "free some space, or name a path on another disk"
        )


def check_target(to: str, out: Path, opset: int | None = None) -> None:
    """Check ``export``'s arguments before any slow step. Args and errors: see ``export``."""
    choice("to", to, tuple(FORMATS))
    if out.suffix != FORMATS[to].suffix:
        raise ArgumentError(f"a file of the format {to} ends in {FORMATS[to].suffix}; got {out.name}")
    taken = next((path for path in (out, *_beside(out)) if os.path.lexists(path)), None)
    if taken:
        raise ExistingPathError(f"{taken} exists: name another file to write")
    if not out.parent.is_dir():
        raise MissingPathError(f"there is no folder {out.parent} for {out.name}: create it first")
    if opset is not None and to != "onnx":
        raise ArgumentError(f"opset applies to onnx only; got opset={opset} for {to}")
    if opset is not None and opset not in OPSETS:
        raise ArgumentError(
            f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, which torch's exporter writes; got {opset}"
        )
    _check_packages(to)


def _check_packages(to: str) -> None:
    """Raise ``MissingPackageError`` naming the packages to install for a format."""
    needed = FORMATS[to].packages
    for package in needed:
        if not installed(package):
            raise MissingPackageError(
                f"the format {to} needs {package}, which is not installed: pip install {' '.join(needed)}"
            )


def installed(package: str) -> bool:
    """Return whether a package is installed, without importing it."""
    return find_spec(package) is not None


def example(model: Any) -> Tensor:
    """Return images [2, channels, height, width] of the size that a timm or torchvision model was made for."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    size = (model.image_size,) * 2 if hasattr(model, "image_size") else model.patch_embed.img_size
    return torch.randn(2, first.in_channels, *size)


def trace(model: Any, images: Tensor, dynamic: bool = True) -> torch.export.ExportedProgram:
    """Return the model as a program.

    Args:
        model: in eval mode.
        images: an example, [batch, channels, height, width].
        dynamic: make the batch dynamic, and the image size if the model allows it; else fix the example's shape.

    Raises:
        ArgumentError: this torch version cannot export a model with a dynamic image size.
    """
    if not dynamic:
        return torch.export.export(model, (images,))
    sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    if getattr(model, "dynamic_img_size", False):
        patch = model.patch_embed.patch_size
        grid = [torch.export.Dim(name, min=2, max=LARGEST_GRID) for name in ("rows", "columns")]
        sizes.update({2 + axis: patch[axis] * grid[axis] for axis in range(2)})
    program = torch.export.export(model, (images,), dynamic_shapes=(sizes,))
    if len(sizes) > 1:
        _check_sizes(program, F.pad(images, (0, patch[1], 0, patch[0])))
    return program


def _check_sizes(program: torch.export.ExportedProgram, larger: Tensor) -> None:
    """Raise ``ArgumentError`` if a program claims a dynamic image size but fails on larger images."""
    try:
        program.module()(larger)
    except RuntimeError as error:  # torch 2.6 fixes the position embedding at the example's size
        raise ArgumentError(
            f"torch {torch.__version__} cannot export a model that takes any image size: update torch, or load it "
            "without dynamic_img_size (--dynamic-size)"
        ) from error


def input_shape(program: torch.export.ExportedProgram) -> tuple[str | int, ...]:
    """Return the shape of a program's images, with names for dynamic sizes."""
    node = next(node for node in program.graph.nodes if node.name == program.graph_signature.user_inputs[0])
    names = ("batch", "channels", "height", "width")
    shape = node.meta["val"].shape
    return tuple(size if isinstance(size, int) else name for size, name in zip(shape, names, strict=True))


@torch.no_grad()
def compare(model: nn.Module, run: Callable[[Path, Tensor], Tensor], out: Path, images: Tensor) -> float:
    """Return the largest difference between the written file's outputs and the model's, relative to the largest output.

    Args:
        model: in eval mode.
        run: runs the file on images, see ``Format``.
        out: the file.
        images: the example that was traced; two images become three, to test that the batch is dynamic.
    """
    images = torch.cat([images, images.flip(0)])[:3] if len(images) > 1 else images
    expected = model(images)
    return float((run(out, images) - expected).abs().max() / (expected.abs().max() or 1))  # untrained heads output 0


@contextmanager
def quiet() -> Iterator[None]:
    """Hide exporters' warnings about their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for module in ("executorch", "onnxscript", "onnx", "openvino", "torch", "torchao"):
            warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
        yield
