"""What lower precision costs: accuracy of the trained nano4, and features of a transplanted real ViT-S.

    python -m experiments.quantisation --data-dir DATA [--weights dinov2_vit_small.safetensors] [--images 2000]

DATA is the image folder that ``python -m tools.cifar10 DATA`` writes; the weights are what
``python -m tools.dinov2_vit_small FILE`` writes. torchao quantises linear layers and leaves convolutions in float;
onnxruntime quantises both, here with and without the stem. Prints a table; ``--out FILE`` keeps it.
"""

from __future__ import annotations

import argparse
import copy
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import convstem
from convstem.inference.export import export
from experiments.transplant_cifar10_data import Split, load_split, normalise
from tools.dinov2_vit_small import load_patch16

BATCH = 250
CALIBRATION = 64
"""Images that static quantisation sees."""

STEMS: dict[str, convstem.StemSpec | None] = {
    "default stem": None,
    "lean stem (shifted pixels)": convstem.StemSpec((24, 48, 192, 768)),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="real ViT-S weights; without them the second table is left out")
    parser.add_argument("--images", type=int, default=2000, help="test images of nano4")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")  # the quantisers' own
    lines = [circumstances(), "", *nano_lines(arguments.data_dir, arguments.images)]
    if arguments.weights:
        lines += ["", *feature_lines(arguments.weights)]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


def circumstances() -> str:
    """Return machine and versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "torchao", "onnxruntime"))
    return f"{platform.machine()}; Python {platform.python_version()}, {packages}"


def in_precision(model: nn.Module, dtype: torch.dtype, images: Tensor) -> Tensor:
    """Return a model's outputs in float32, computed in another precision."""
    return model(images.to(dtype)).float()


def variants(model: nn.Module, calibration: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield each way to run a model, by name: images [batch, 3, height, width] to outputs."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    yield "float32", model
    for dtype in (torch.bfloat16, torch.float16):
        lower = copy.deepcopy(model).to(dtype)
        yield str(dtype).removeprefix("torch."), partial(in_precision, lower, dtype)
    for name, config in (
        ("int8 weights (torchao, linear layers)", Int8WeightOnlyConfig()),
        ("int8 dynamic (torchao, linear layers)", Int8DynamicActivationInt8WeightConfig()),
    ):
        quantised = copy.deepcopy(model)
        quantize_(quantised, config)
        yield name, quantised
    with tempfile.TemporaryDirectory() as folder:
        yield from onnx_variants(model, calibration, Path(folder))


def onnx_variants(
    model: nn.Module, calibration: Tensor, folder: Path
) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield onnxruntime's dynamic and static quantisation, with the stem's convolutions in int8 and in float."""
    from onnxruntime.quantization import quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    export(model, "onnx", folder / "float.onnx")
    quant_pre_process(folder / "float.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
    quantize_dynamic(folder / "ready.onnx", folder / "dynamic.onnx", op_types_to_quantize=["MatMul", "Gemm"])
    yield "int8 dynamic (onnxruntime, linear layers)", session(folder / "dynamic.onnx")
    for name, types in (("all layers", ["MatMul", "Gemm", "Conv"]), ("stem in float", ["MatMul", "Gemm"])):
        out = folder / f"static{len(types)}.onnx"
        reader = Reader(calibration, folder / "ready.onnx")
        quantize_static(folder / "ready.onnx", out, reader, op_types_to_quantize=types, per_channel=True)
        yield f"int8 static (onnxruntime, {name})", session(out)


class Reader:
    """Calibration images for onnxruntime, one by one."""

    def __init__(self, images: Tensor, path: Path) -> None:
        import onnx

        name = onnx.load(path, load_external_data=False).graph.input[0].name
        self.feeds = iter([{name: image[None].numpy()} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feed, or None after the last."""
        return next(self.feeds, None)


def session(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an ONNX file."""
    import onnxruntime

    run = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = run.get_inputs()[0].name
    return lambda images: torch.from_numpy(run.run(None, {name: images.numpy()})[0])


@torch.no_grad()
def nano_lines(data: Path, count: int) -> list[str]:
    """Return nano4's accuracy in every precision."""
    test = load_split(data / "validation", data / "validation.pt", 0)
    train = load_split(data / "train", data / "train.pt", CALIBRATION // 10 * 10)
    model = timm.create_model("vit_nano4_convstem", pretrained=True).eval()
    rows = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(0))[:count]
    lines = [f"vit_nano4_convstem.cifar10, accuracy on {len(rows)} test images"]
    for name, run in variants(model, normalise(train.images)):
        lines.append(f"{name:48}{accuracy(run, test, rows):7.2f} %")
    return lines


def accuracy(run: Callable[[Tensor], Tensor], test: Split, rows: Tensor) -> float:
    """Return the share of right predictions in per cent."""
    right = sum(
        int((run(normalise(test.images[part])).argmax(1) == test.labels[part]).sum()) for part in rows.split(BATCH)
    )
    return 100 * right / len(rows)


@torch.no_grad()
def feature_lines(weights: Path) -> list[str]:
    """Return how far a real ViT-S's class token moves in every precision, patchify and transplanted."""
    source = load_patch16(weights).eval()
    images = photographs(source)
    expected = source(images)
    models = {"patchify": source}
    models |= {name: convstem.transplant(source, stem).eval() for name, stem in STEMS.items()}
    lines = [f"real ViT-S/16, class token of {len(images)} photographs: relative error and cosine to float32 patchify"]
    for stem, model in models.items():
        lines.append(stem)
        for name, run in variants(model, images):
            actual = run(images)
            error = float((actual - expected).norm() / expected.norm())
            cosine = float(nn.functional.cosine_similarity(actual, expected).mean())
            lines.append(f"  {name:46}{error:9.1e}{cosine:9.4f}")
    return lines


def photographs(model: Any) -> Tensor:
    """Return normalised photographs of scikit-image [7, 3, height, width]."""
    from PIL import Image
    from skimage import data

    names = ("astronaut", "chelsea", "coffee", "rocket", "cat", "immunohistochemistry", "retina")
    settings = timm.data.resolve_data_config({"input_size": (3, *model.patch_embed.img_size)}, model=model)
    transform = timm.data.create_transform(**settings)
    return torch.stack([transform(Image.fromarray(getattr(data, name)()).convert("RGB")) for name in names])


if __name__ == "__main__":
    main()
