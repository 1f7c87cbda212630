"""The models compared in benchmarks/inference.py, and the ways to run them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
import torchvision
from torch import Tensor, nn

Build: TypeAlias = Callable[..., nn.Module]
Run: TypeAlias = Callable[[Tensor], Any]

SIZES = {  # our name, timm's patchify peer, torchvision's builder
    "Ti": ("vit_ti16_convstem", "vit_tiny_patch16_224", None),
    "S": ("vit_s16_convstem", "vit_small_patch16_224", None),
    "B": ("vit_b16_convstem", "vit_base_patch16_224", "vit_b_16"),
    "L": ("vit_l16_convstem", "vit_large_patch16_224", "vit_l_16"),
}

LEAN = {"stem_channels": (24, 48, 192, 768)}
"""The narrowest stem that is exact for pixels in range."""


def patchify(size: str, **kwargs: Any) -> nn.Module:
    """Return timm's patchify ViT, the reference of all ratios."""
    return timm.create_model(SIZES[size][1], **kwargs)


def ours(size: str, **kwargs: Any) -> nn.Module:
    """Return our model with its default stem."""
    return timm.create_model(SIZES[size][0], **kwargs)


def torchvision_stem(size: str, img_size: int = 224) -> nn.Module:
    """Return torchvision's ViT with a conv stem like the one in its documentation: BatchNorm, not folded."""
    from torchvision.models.vision_transformer import ConvStemConfig

    name = SIZES[size][2]
    if name is None:
        raise LookupError(f"torchvision has no ViT of the size {size}")
    width = {"B": 96, "L": 128}[size]
    configs = [ConvStemConfig(width * 2**layer, 3, 2) for layer in range(4)]
    return torchvision.models.get_model(name, conv_stem_configs=configs, image_size=img_size)


PEERS: dict[str, Build] = {
    "patchify": patchify,
    "ours": ours,
    "ours, BatchNorm": partial(ours, stem_norm="batchnorm2d"),
    "ours, lean": partial(ours, **LEAN),
    "ours, 11 blocks": partial(ours, depth=11),
    "torchvision's conv stem": torchvision_stem,
}
"""Label -> how to build the model; the paper removes one block to pay for the stem."""


DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
"""Dtype of the images; int8 is dynamic quantisation of the weights and activations of linear layers."""


def in_torch(wrap: Build, model: nn.Module, dtype: str) -> Run:
    """Return the model to run in torch, in a dtype; ``wrap`` may compile it."""
    if dtype == "int8":
        quantization = import_module("torchao.quantization")
        quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    torch.compiler.reset()
    return wrap(model.to(DTYPES[dtype]))


def exported(to: str, load: Callable[[Path], Run], model: nn.Module, dtype: str) -> Run:
    """Return the model in another runtime, loaded from the file that ``convstem export`` writes."""
    from convstem.inference import FORMATS, export

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"model{FORMATS[to].suffix}"
        export(model, to, out)
        return load(int8_graph(out) if dtype == "int8" else out)


def int8_graph(path: Path) -> Path:
    """Return an ONNX file with linear layers quantised by onnxruntime."""
    quantization = import_module("onnxruntime.quantization")
    shapes = import_module("onnxruntime.quantization.shape_inference")
    ready, out = path.with_name("ready.onnx"), path.with_name("int8.onnx")
    shapes.quant_pre_process(path, ready, skip_symbolic_shape=True)
    quantization.quantize_dynamic(ready, out, op_types_to_quantize=["MatMul", "Gemm"])
    return out


def onnxruntime(out: Path) -> Run:
    """Return a session's run method."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(out, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})


def openvino(out: Path) -> Run:
    """Return a compiled model."""
    core = import_module("openvino").Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = core.compile_model(core.read_model(out), "CPU", options)
    return lambda images: model(images.numpy())


@dataclass(frozen=True)
class Engine:
    """A way to run a model: ``start`` turns the model and a dtype's name into a function of images."""

    start: Callable[[nn.Module, str], Run]
    dtypes: tuple[str, ...]


IN_TORCH = tuple(DTYPES)
ENGINES = {
    "eager": Engine(partial(in_torch, lambda model: model), IN_TORCH),
    "compile": Engine(partial(in_torch, torch.compile), IN_TORCH),
    "compile, frozen": Engine(partial(in_torch, partial(torch.compile, options={"freezing": True})), IN_TORCH),
    "onnxruntime": Engine(partial(exported, "onnx", onnxruntime), ("float32", "int8")),
    "openvino": Engine(partial(exported, "openvino", openvino), ("float32",)),
}
"""Label -> how a model is run."""
