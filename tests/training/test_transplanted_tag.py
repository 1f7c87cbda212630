"""A name fixes the structure: timm's own scripts run on a transplanted tag without any flag about the stem."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.assertions import randomise, relative_error
from tests.support.script_runs import Run, Scripts, largest_gap, read_checkpoint, train

pytestmark = pytest.mark.full

NAME, SOURCE = "vit_ti16_convstem", "vit_tiny_patch16_224"
TAG = "augreg_in21k_ft_in1k"
TUNE = ("--model", NAME, "--pretrained", "--num-classes", 10, "--batch-size", 40, "--opt", "sgd", "--lr", "1e-3")
"""One batch an epoch, since train.py saves no RNG state."""


@pytest.fixture(scope="module")
def source(hub_file: Callable[..., None]) -> nn.Module:
    """Return the patchify model with the weights that both names' tag refers to."""
    model = randomise(timm.create_model(SOURCE)).eval()
    hub_file(f"timm/{SOURCE}.{TAG}", model.state_dict())
    return model


@pytest.fixture(scope="module")
def tuned(timm_scripts: Scripts, source: nn.Module) -> Run:
    """Two epochs of fine-tuning."""
    return train(timm_scripts, "transplanted", *TUNE, epochs=2)


def outputs(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval().forward_features(images)


def loaded(path: Path) -> nn.Module:
    """Return the name's model with a checkpoint's weights, as validate.py loads it."""
    return timm.create_model(NAME, num_classes=10, checkpoint_path=str(path)).eval()


def test_training_starts_from_the_function_of_the_source(timm_scripts: Scripts, source: nn.Module) -> None:
    still = train(timm_scripts, "still", *TUNE, "--lr", "1e-12")
    images = torch.randn(2, 3, 224, 224)
    expected = outputs(source, images)
    assert relative_error(outputs(timm.create_model(NAME), images), expected) > 0.1  # control
    assert relative_error(outputs(loaded(still.folder / "last.pth.tar"), images), expected) < 1e-5


def top1(timm_scripts: Scripts, *model: Any) -> float:
    where = ["--data-dir", timm_scripts.images, "--device", "cpu", "--workers", "1", "--num-classes", "10"]
    log = timm_scripts.run("validate.py", *where, "--model", *model)
    return float(json.loads(log.split("--result")[1].split("\n}")[0] + "}")["top1"])


def test_validate_py_and_local_dir_give_what_train_py_gave(timm_scripts: Scripts, tuned: Run, tmp_path: Path) -> None:
    checkpoint = tuned.folder / "last.pth.tar"
    said = float(tuned.summary[-1]["eval_top1"])
    assert top1(timm_scripts, NAME, "--checkpoint", checkpoint) == pytest.approx(said, abs=1e-3)
    model, images = loaded(checkpoint), torch.randn(2, 3, 224, 224)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        assert not torch.equal(timm.create_model(NAME, num_classes=10).eval()(images), model(images))  # control
    assert top1(timm_scripts, f"local-dir:{tmp_path}", "--pretrained") == pytest.approx(said, abs=1e-3)


def test_resume_goes_on_to_the_same_state(timm_scripts: Scripts, tuned: Run) -> None:
    halfway = tuned.folder / "checkpoint-0.pth.tar"
    assert largest_gap(read_checkpoint(halfway)["state_dict"], tuned.weights) > 1e-5
    resumed = train(timm_scripts, "transplanted, resumed", *TUNE, "--resume", halfway, epochs=2)
    assert largest_gap(resumed.weights, tuned.weights) < 1e-6


def test_a_checkpoint_of_the_source_is_refused_by_name(timm_scripts: Scripts, tmp_path: Path) -> None:
    """Only ``--pretrained`` transplants weights with a patch embedding; a checkpoint is taken as it is."""
    model = timm.create_model(SOURCE, num_classes=10)
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    where = ["--data-dir", timm_scripts.images, "--device", "cpu", "--num-classes", "10", "--model", NAME]
    log = timm_scripts.run("validate.py", *where, "--checkpoint", tmp_path / "plain.safetensors", fails=True)
    assert "patch_embed.proj.weight" in log
