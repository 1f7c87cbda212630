"""The real DINOv2 ViT-S with a linear head for CIFAR-10, fitted on its frozen features of the first images.

    python -m tools.cifar10 DATA
    python -m tools.dinov2_vit_small FILE
    python -m experiments.linear_probe --data-dir DATA --weights FILE --out SOURCE

SOURCE is like the folder of a training: ``experiments.transplant_gain`` starts from it. Fine-tuning with a new head
would distort the pretrained features: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", arXiv 2202.10054.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from convstem.files.paths import write_whole
from experiments.cifar10 import data, models
from experiments.cifar10.data import Split, normalise
from experiments.cifar10.settings import Settings
from experiments.cifar10.training import CHECKPOINT, EVALUATION_BATCH, accuracy
from tools.dinov2_vit_small import ARCHITECTURE, PATCH, WeightsError, load_patch16

DECAY = 1e-3
"""Weight of the head's squared norm in the loss, relative to the mean cross-entropy."""


@torch.no_grad()
def pooled_features(model: Any, images: Tensor, size: int) -> Tensor:
    """Return the head's input [count, embed_dim] for images as bytes [count, 3, height, width]."""
    parts = (data.resize(normalise(part), size) for part in images.split(EVALUATION_BATCH))
    return torch.cat([model.forward_head(model.forward_features(part), pre_logits=True) for part in parts])


def fit(head: nn.Linear, features: Tensor, labels: Tensor) -> None:
    """Fit a linear layer to labels [count] and features [count, embed_dim] by multinomial logistic regression."""
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(head(features), labels) + DECAY * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def probe(pretrained: Any, train: Split, size: int, device: str) -> tuple[Settings, nn.Module]:
    """Return the ViT-S with a fitted head in eval mode, and the settings that build it.

    Args:
        pretrained: the ViT-S without a head.
        train: the images to fit on.
        size: side in pixels to which the images are resized.
    """
    arguments = {"img_size": size, "patch_size": PATCH, **models.CFG}
    settings = Settings(model=ARCHITECTURE, model_kwargs=arguments, size=size)
    pretrained.set_input_size(img_size=size)
    model: Any = models.create(settings)
    model.load_state_dict({**model.state_dict(), **pretrained.state_dict()})
    model.to(device).eval()
    fit(model.get_classifier(), pooled_features(model, train.images, size), train.labels)
    return settings, model


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="image folder written by tools/cifar10.py")
    parser.add_argument("--weights", type=Path, required=True, help="file written by tools/dinov2_vit_small.py")
    parser.add_argument("--out", type=Path, required=True, help="destination directory")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=5000, help="first images of each class, in all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Fit, write the folder and print the accuracy."""
    args = parse_args(argv)
    try:
        pretrained = load_patch16(args.weights)
    except WeightsError as error:
        sys.exit(f"error: {error}")
    train, test = data.read(args.data_dir, Settings(train_images=args.images), args.device)
    settings, model = probe(pretrained, train, args.size, args.device)
    state = {"settings": asdict(settings), "state_dict": model.state_dict(), "state_dict_ema": None}
    args.out.mkdir(parents=True, exist_ok=True)
    write_whole(args.out / CHECKPOINT, partial(torch.save, state))
    figures = (accuracy(model, split, args.size) for split in (train, test))
    print("{:.2f} % of the images it was fitted on, {:.2f} % of the test images".format(*figures))


if __name__ == "__main__":
    main()
