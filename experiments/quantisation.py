"""The cost of lower precision: accuracy of the trained nano4, and features of a transplanted ViT-S in DINOv2's layout.

    python -m experiments.quantisation --data-dir DATA --out DIR [--weights dinov2.safetensors] [--images 2000]

``python -m tools.cifar10 DATA`` writes the image folder, ``python -m tools.dinov2_vit_small FILE`` the weights. torchao
quantises linear layers and leaves convolutions in float. onnxruntime quantises both: all layers, only the trunk, only
the stem, and the stem without one of its layers. Static quantisation is calibrated on images that are not evaluated.
DIR gets ``quantisation.txt`` and ``quantisation.json`` after every figure, so an interrupted run can continue.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
from torch import Tensor, nn

import convstem
from benchmarks.load import machine
from benchmarks.photographs import CALIBRATION, HELD_OUT, crops
from convstem.inference import export
from experiments.cifar10.data import Split, load_split, normalise
from tools.dinov2_vit_small import load_patch16

Run: TypeAlias = Callable[[Tensor], Tensor]

BATCH = 250
LINEAR = ("MatMul", "Gemm")
"""ONNX operators of the trunk that onnxruntime quantises; the stem's is Conv."""

STEMS: dict[str, convstem.StemSpec | None] = {
    "default stem, both signs of every pixel": None,
    "lean stem, shifted pixels": convstem.StemSpec((24, 48, 192, 768), norm="none"),
}
"""How a transplanted stem carries pixels through its ReLUs -> the stem; ``shifted`` pixels are x + shift."""


def main() -> None:
    """Measure what is missing in the results, and print all of them."""
    arguments = parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # from the quantisers
    results = Results(arguments.out)
    nano(results, arguments.data_dir, arguments.images)
    if arguments.weights:
        features(results, arguments.weights, arguments.crops)
    print(results.text())


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="written by tools.dinov2_vit_small; without them, no second table")
    parser.add_argument("--images", type=int, default=2000, help="test images of nano4")
    parser.add_argument("--crops", type=int, default=2, help="crops of each photograph")
    return parser.parse_args(argv)


class Results:
    """Figures by table and variant, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "quantisation.json"
        self.tables: dict[str, dict[str, str]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def has(self, table: str, variant: str) -> bool:
        """Return whether a figure is already there."""
        return variant in self.tables.get(table, {})

    def add(self, table: str, variant: str, figure: str) -> None:
        """Add a figure and save all."""
        self.tables.setdefault(table, {})[variant] = figure
        self.path.write_text(json.dumps(self.tables, indent=1) + "\n", encoding="utf-8")
        (self.folder / "quantisation.txt").write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """Return all tables."""
        lines = [f"{machine('cpu')}, torchao {version('torchao')}, onnxruntime {version('onnxruntime')}"]
        for table, figures in self.tables.items():
            lines += ["", table, *(f"  {variant:58}{figure}" for variant, figure in figures.items())]
        return "\n".join(lines) + "\n"


def run_all(results: Results, table: str, model: nn.Module, calibration: Tensor, figure: Callable[[Run], str]) -> None:
    """Add the missing figures of a model, for each way to run it."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for variant, prepare in variants(model, calibration, Path(folder)).items():
            if not results.has(table, variant):
                results.add(table, variant, figure(prepare()))


def variants(model: nn.Module, calibration: Tensor, folder: Path) -> dict[str, Callable[[], Run]]:
    """Return each way to run a model, by name: a function that prepares a function of images to outputs."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    ready = folder / "ready.onnx"
    static = partial(onnx_static, model, calibration, ready)
    stem = [f"layer {index}" for index in range(len(convolutions(model)))]
    return {
        "float32": lambda: model,
        "int8 static, stem alone (onnxruntime)": partial(static, ("Conv",)),
        **{
            f"int8 static, stem alone, its {name} in float": partial(static, ("Conv",), index)
            for index, name in enumerate(stem)
            if len(stem) > 1
        },
        "int8 static, linear layers, stem in float (onnxruntime)": partial(static, LINEAR),
        "int8 static, all layers (onnxruntime)": partial(static, (*LINEAR, "Conv")),
        "int8 weights alone, linear layers (torchao)": partial(torchao, model, Int8WeightOnlyConfig()),
        "int8 dynamic, linear layers (torchao)": partial(torchao, model, Int8DynamicActivationInt8WeightConfig()),
        "int8 dynamic, linear layers (onnxruntime)": partial(onnx_dynamic, model, ready),
        "bfloat16": partial(in_precision, model, torch.bfloat16),
        "float16": partial(in_precision, model, torch.float16),
    }


def convolutions(model: nn.Module) -> list[nn.Module]:
    """Return the convolutions of a model in order: the stem's, or the patch embedding's."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def in_precision(model: nn.Module, dtype: torch.dtype) -> Run:
    """Return the model computing in another precision, with outputs in float32."""
    lower = copy.deepcopy(model).to(dtype)
    return lambda images: lower(images.to(dtype)).float()


def torchao(model: nn.Module, config: Any) -> Run:
    """Return a copy quantised by torchao."""
    from torchao.quantization import quantize_

    quantised = copy.deepcopy(model)
    quantize_(quantised, config)
    return quantised


def graph(model: nn.Module, ready: Path) -> Path:
    """Return the ONNX file of a model, prepared for quantisation; written once."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not ready.exists():
        export(model, "onnx", ready.with_name("float.onnx"))
        quant_pre_process(ready.with_name("float.onnx"), ready, skip_symbolic_shape=True)
    return ready


def onnx_dynamic(model: nn.Module, ready: Path) -> Run:
    """Return the model in onnxruntime with int8 weights and activations quantised by their current range."""
    from onnxruntime.quantization import quantize_dynamic

    out = ready.with_name("dynamic.onnx")
    quantize_dynamic(graph(model, ready), out, op_types_to_quantize=LINEAR)
    return session(out)


def onnx_static(
    model: nn.Module, calibration: Tensor, ready: Path, types: tuple[str, ...], in_float: int | None = None
) -> Run:
    """Return the model in onnxruntime with weights and activations in int8.

    Args:
        model: in float32.
        calibration: images [count, 3, height, width] that set the ranges of activations.
        ready: path of the prepared graph.
        types: operators to quantise.
        in_float: index of a convolution to leave in float.
    """
    import onnx
    from onnxruntime.quantization import quantize_static

    nodes = onnx.load(graph(model, ready)).graph
    stem = [node.name for node in nodes.node if node.op_type == "Conv"]
    out = ready.with_name("static.onnx")
    quantize_static(
        ready,
        out,
        Reader(calibration, nodes.input[0].name),
        op_types_to_quantize=types,
        per_channel=True,
        reduce_range=True,  # 7-bit weights: without VNNI, products of 8-bit numbers overflow
        nodes_to_exclude=[] if in_float is None else [stem[in_float]],
    )
    return session(out)


class Reader:
    """Calibration images for onnxruntime, one at a time."""

    def __init__(self, images: Tensor, name: str) -> None:
        self.feeds = iter([{name: image[None].numpy()} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feed, or None after the last."""
        return next(self.feeds, None)


def session(path: Path) -> Run:
    """Return a function that runs an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = run.get_inputs()[0].name
    return lambda images: torch.from_numpy(run.run(None, {name: images.numpy()})[0])


def nano(results: Results, data: Path, count: int) -> None:
    """Measure nano4's accuracy; its BatchNorm is folded first, as for serving."""
    test = load_split(data / "validation", data / "validation.pt", 0)
    train = load_split(data / "train", data / "train.pt", 60)
    model = convstem.fold(timm.create_model("vit_nano4_convstem", pretrained=True).eval())
    rows = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(0))[:count]
    chosen = Split(test.images[rows], test.labels[rows])
    table = f"vit_nano4_convstem.cifar10, folded: accuracy on {count} test images, error of the logits to float32"
    expected = outputs(model, chosen)
    run_all(results, table, model, normalise(train.images), partial(accuracy, test=chosen, expected=expected))


@torch.no_grad()
def outputs(run: Run, data: Split) -> Tensor:
    """Return the logits of a split, [images, classes]."""
    return torch.cat([run(normalise(part)) for part in data.images.split(BATCH)])


def accuracy(run: Run, test: Split, expected: Tensor) -> str:
    """Return the share of correct predictions in per cent, and the relative error of the logits."""
    actual = outputs(run, test)
    right = int((actual.argmax(1) == test.labels).sum())
    return f"{100 * right / len(actual):.2f} %  {float((actual - expected).norm() / expected.norm()):.1e}"


def features(results: Results, weights: Path, count: int) -> None:
    """Measure the error of a ViT-S's class token, patchify and transplanted."""
    source = load_patch16(weights).eval()
    size = source.patch_embed.img_size[0]
    images, calibration = crops(HELD_OUT, count, size), crops(CALIBRATION, count, size)
    with torch.no_grad():
        expected = torch.cat([source(part) for part in images.split(4)])
    models = {"patchify": source}
    models |= {name: convstem.transplant(source, stem).eval() for name, stem in STEMS.items()}
    for stem, model in models.items():
        table = (
            f"ViT-S/14 as patch 16, {stem}: class token of {len(images)} crops, error and cosine to float32 patchify"
        )
        run_all(results, table, model, calibration, partial(distance, images=images, expected=expected))


def distance(run: Run, images: Tensor, expected: Tensor) -> str:
    """Return relative error, mean cosine and minimum cosine of the class tokens."""
    actual = torch.cat([run(part) for part in images.split(4)])
    error = float((actual - expected).norm() / expected.norm())
    cosines = nn.functional.cosine_similarity(actual, expected)
    return f"{error:.1e}  mean {float(cosines.mean()):.4f}, least {float(cosines.min()):.4f}"


if __name__ == "__main__":
    main()
