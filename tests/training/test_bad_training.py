"""What a user sees when training is misconfigured, in the models and through timm's train.py."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision

from tests.support.script_runs import NAME, Scripts, train

TIMM, TORCHVISION = NAME, "vit_nano_4_convstem"


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: timm.create_model(TIMM), r"Input height \(40\) doesn't match model \(32\)"),
        (lambda: torchvision.models.get_model(TORCHVISION), "Wrong image height! Expected 32 but got 40!"),
    ],
    ids=["timm", "torchvision"],
)
def test_another_image_size_is_refused(create: Callable[..., Any], message: str) -> None:
    model = create()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(AssertionError, match=message):
        model(torch.randn(2, 3, 40, 40))


def test_mixed_image_sizes_need_dynamic_img_size() -> None:
    model = timm.create_model(TIMM, dynamic_img_size=True).eval()
    for size in (32, 40, 36):
        assert model(torch.randn(1, 3, size, size)).shape == (1, 10)


def test_a_batch_of_one_trains_on_one_images_statistics() -> None:
    """torch refuses only one value per channel. A stem sees many pixels, so this is legal; the docs mention it."""
    model = timm.create_model(TIMM)
    image = torch.randn(1, 3, 32, 32)
    model.train()(image).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    narrow = torch.nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        narrow(torch.randn(1, 4, 1, 1))


@pytest.mark.full
def test_a_diverging_learning_rate_is_seen_in_log_and_summary(timm_scripts: Scripts) -> None:
    """train.py goes on: log and summary.csv show a nan loss, but the exit status does not."""
    fine = train(timm_scripts, "converges")
    assert not math.isnan(float(fine.summary[-1]["train_loss"]))
    run = train(timm_scripts, "diverges", "--opt", "sgd", "--lr", "1e12", epochs=2)
    assert math.isnan(float(run.summary[-1]["train_loss"]))
    assert "Loss: nan" in run.log.replace("  ", " ")
    assert any(tensor.isnan().any() for tensor in run.weights.values())


@pytest.mark.full
def test_an_image_size_the_model_was_not_built_for_stops_training(timm_scripts: Scripts) -> None:
    run = train(timm_scripts, "size", "--img-size", 40, fails=True)
    assert "Input height (40) doesn't match model (32)" in run.log
    train(timm_scripts, "size_right", "--img-size", 40, "--model-kwargs", "img_size=40")


RESUME = {
    "another stem": (
        ["--model-kwargs", "stem_channels=[32,64]"],
        "this checkpoint has another stem: its conv channels are [32, 64, 96], the model's are [64, 128, 96]",
    ),
    "a patchify ViT": (
        ["--model", "vit_tiny_patch16_224", "--model-kwargs", "img_size=32", "patch_size=4", "depth=1"],
        "this is the checkpoint of a plain (patchify) ViT",
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("kind", RESUME)
def test_resuming_from_the_wrong_checkpoint_names_it(timm_scripts: Scripts, kind: str) -> None:
    flags, message = RESUME[kind]
    other = train(timm_scripts, "other", *flags, "--num-classes", 10, "--input-size", 3, 32, 32)
    run = train(timm_scripts, "wrong", "--resume", other.folder / "last.pth.tar", fails=True)
    assert message in run.log
    assert not list(run.folder.glob("*.pth.tar"))
