"""Embed a checkpoint of timm's train.py as weights in the package, and print its row for registry/weights.json.

    python -m tools.embed_weights OUT/vit_nano4_convstem/last.pth.tar DATA vit_nano4_convstem.cifar10

Writes registry/weights/NAME.safetensors and measures its top-1 accuracy on all images of DATA/validation, in float32,
in timm's model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import timm
import torch
from timm.models import load_state_dict
from torchvision.datasets import ImageFolder

from convstem.files.safetensors import read_weights, write_weights

REGISTRY = Path(__file__).parents[1] / "registry"


def write(checkpoint: Path, target: Path, architecture: str) -> None:
    """Write a training checkpoint's weights as safetensors, after loading them strictly into the architecture."""
    state = load_state_dict(str(checkpoint), weights_only=False)
    model = timm.create_model(architecture)
    model.load_state_dict(state)
    target.parent.mkdir(exist_ok=True)
    write_weights({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, target)


@torch.inference_mode()
def evaluate(target: Path, folder: Path, architecture: str) -> tuple[float, ImageFolder]:
    """Return top-1 accuracy in per cent on an image folder, and the folder."""
    model = timm.create_model(architecture).eval()
    model.load_state_dict(read_weights(target))  # not by tag: the registry still has the old file's hash
    config = timm.data.resolve_model_data_config(model)
    dataset = ImageFolder(str(folder), timm.data.create_transform(**config, is_training=False))
    loader = torch.utils.data.DataLoader(dataset, batch_size=500)
    correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return 100 * correct / len(dataset), dataset


def main() -> None:
    """Write the file, measure it, print the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, help="image folder with validation/")
    parser.add_argument("name", help="architecture.tag")
    args = parser.parse_args()
    target = REGISTRY / "weights" / f"{args.name}.safetensors"
    architecture = args.name.split(".")[0]
    write(args.checkpoint, target, architecture)
    accuracy, dataset = evaluate(target, args.data / "validation", architecture)
    row = {
        "file": f"weights/{target.name}",
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "num_classes": len(dataset.classes),
        "label_names": dataset.classes,
        "metrics": {"acc@1": round(accuracy, 2)},
    }
    print(f"{len(dataset)} images\n{json.dumps({args.name: row})}")


if __name__ == "__main__":
    main()
