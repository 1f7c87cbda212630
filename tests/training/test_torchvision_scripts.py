"""torchvision's own references/classification/train.py, unmodified, on our names."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torchvision.datasets import ImageFolder

from tests.support.script_runs import Scripts, largest_gap, read_checkpoint

pytestmark = pytest.mark.full

NAME, WEIGHTS = "vit_nano_4_convstem", "ViT_Nano_4_ConvStem_Weights.CIFAR10"
SIZES = "--train-crop-size 32 --val-resize-size 32 --val-crop-size 32"
BASE = f"--model {NAME} --device cpu --batch-size 40 --workers 1 {SIZES} --opt adamw --lr 1e-3"

# A checkpoint holds the script's argparse.Namespace, which the script's torch.load(weights_only=True) must be told to
# trust. Without this no torchvision model can be resumed.
TRUST_NAMESPACE = (
    "import argparse, runpy, torch; torch.serialization.add_safe_globals([argparse.Namespace]); "
    "runpy.run_path('train.py', run_name='__main__')"
)


def train(scripts: Scripts, *flags: Any, code: str | None = None, fails: bool = False) -> str:
    return scripts.run("train.py", "--data-path", scripts.images, *BASE.split(), *flags, code=code, fails=fails)


def accuracies(log: str, name: str = "Test") -> list[float]:
    """Return the printed accuracies, one per evaluation."""
    return [float(value) for value in re.findall(rf"{name}:?\s+Acc@1 ([\d.]+)", log)]


@pytest.fixture(scope="module")
def trained(torchvision_scripts: Scripts) -> tuple[str, Path]:
    """Return the log and folder of four epochs with EMA."""
    folder = torchvision_scripts.out / "trained"
    flags = ["--epochs", 4, "--model-ema", "--model-ema-steps", 1, "--model-ema-decay", 0.9, "--output-dir", folder]
    return train(torchvision_scripts, *flags), folder


def test_training_lowers_the_loss_and_averages_buffers_too(trained: Any) -> None:
    log, folder = trained
    losses = [float(value) for value in re.findall(r"Epoch: \[\d\].*?loss: ([\d.]+)", log)]
    assert losses[-1] < losses[0] - 0.1
    saved = read_checkpoint(folder / "checkpoint.pth")
    ema = saved["model_ema"]["module.conv_proj.conv_bn_relu_0.1.running_mean"]
    assert torch.isfinite(ema).all()
    assert ema.abs().max() > 1e-4


def test_test_only_reaches_the_accuracy_of_the_training(torchvision_scripts: Scripts, trained: Any) -> None:
    log, folder = trained
    expected = accuracies(log)[-1]
    untrained = accuracies(train(torchvision_scripts, "--test-only"))[-1]
    again = train(torchvision_scripts, "--test-only", "--resume", folder / "checkpoint.pth", code=TRUST_NAMESPACE)
    assert untrained != expected
    assert accuracies(again)[-1] == expected


def test_resume_goes_on_to_the_same_state(torchvision_scripts: Scripts, figure: Callable[[str, object], None]) -> None:
    """One batch of flat colours an epoch: the script saves no RNG state, so randomness must not matter.

    The batch comes in another order, hence the rounding differs; AdamW would make whole steps of it where gradients are
    near zero, SGD does not.
    """
    folder, out = torchvision_scripts.out / "whole", torchvision_scripts.out / "resumed"
    flags = ["--opt", "sgd", "--lr", 0.05, "--epochs", 4, "--model-ema", "--model-ema-steps", 1]
    train(torchvision_scripts, *flags, "--output-dir", folder)
    halfway, last = (read_checkpoint(folder / f"model_{epoch}.pth") for epoch in (1, 3))
    train(torchvision_scripts, *flags, "--output-dir", out, "--resume", folder / "model_1.pth", code=TRUST_NAMESPACE)
    resumed = read_checkpoint(out / "checkpoint.pth")
    for part in ("model", "model_ema", "optimizer"):
        moved, gap = (largest_gap(_tensors(one[part]), _tensors(last[part])) for one in (halfway, resumed))
        figure(f"gap of {part}", f"{gap:.1e} of {moved:.1e}")
        assert gap < 0.01 * moved


def _tensors(part: Any) -> Any:
    """Return an optimizer's state, or a model's without its counters."""
    return part.get("state") or {key: value for key, value in part.items() if value.is_floating_point()}


def test_weights_are_the_embedded_ones(torchvision_scripts: Scripts) -> None:
    weights = torchvision.models.get_weight(WEIGHTS)
    model = torchvision.models.get_model(NAME, weights=weights).eval()
    images = ImageFolder(torchvision_scripts.images / "val", weights.transforms())
    with torch.no_grad():
        right = sum(int(model(image[None]).argmax() == label) for image, label in images)
    log = train(torchvision_scripts, "--weights", WEIGHTS, "--test-only")
    assert accuracies(log)[-1] == pytest.approx(100 * right / len(images), abs=1e-3)


def test_fine_tuning_starts_from_the_embedded_weights(torchvision_scripts: Scripts) -> None:
    folder = torchvision_scripts.out / "tuned"
    still = ["--epochs", 1, "--opt", "sgd", "--lr", 1e-12, "--output-dir", folder]
    train(torchvision_scripts, "--weights", WEIGHTS, *still)
    tuned = read_checkpoint(folder / "checkpoint.pth")["model"]
    expected = torchvision.models.get_model(NAME, weights=WEIGHTS).state_dict()
    untrained = torchvision.models.get_model(NAME).state_dict()
    key = "heads.head.weight"
    assert largest_gap(tuned[key], untrained[key]) > 0.1
    assert largest_gap(tuned[key], expected[key]) < 1e-6


def test_another_image_size_is_refused_by_torchvision(torchvision_scripts: Scripts) -> None:
    flags = ["--train-crop-size", 40, "--epochs", 1]
    assert "Wrong image height! Expected 32 but got 40!" in train(torchvision_scripts, *flags, fails=True)
