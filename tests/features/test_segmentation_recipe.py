"""The segmentation recipe runs as a user starts it, on photographs with masks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from PIL import Image

from convstem.features import FeaturePyramid

pytestmark = pytest.mark.full  # each run is a separate process

ROOT = Path(__file__).parents[2]


def write(folder: Path, count: int = 10) -> None:
    """Write tiles of a photograph in odd sizes, and masks of their bright parts."""
    from skimage import data

    photo = data.coffee()
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for index in range(count):
        tile = photo[40 * (index // 5) : 40 * (index // 5) + 40, 50 * (index % 5) : 50 * (index % 5) + 50]
        Image.fromarray(tile).save(folder / "images" / f"{index}.jpg")
        Image.fromarray((tile.mean(2) > 100).astype(np.uint8)).save(folder / "masks" / f"{index}.png")


def recipe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes/segmentation.py"), str(folder), "--decoder", "FPN", "--size", "32"]
    command += ["--encoder", "vit_nano4_convstem_pyramid", "--epochs", "2", "--workers", "0", *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True)


@pytest.mark.parametrize("stem", [[], ["--train-stem"]])
def test_the_recipe_trains_and_saves(tmp_path: Path, stem: list[str]) -> None:
    write(tmp_path)
    done = recipe(tmp_path, "--pretrained", "--out", str(tmp_path / "out"), *stem)
    assert done.returncode == 0, done.stderr
    assert re.search(r"epoch 2: loss \d\.\d+, mean IoU \d+\.\d %", done.stdout)
    model = smp.from_pretrained(tmp_path / "out").eval()
    assert isinstance(model.encoder.model, FeaturePyramid)
    assert model(torch.rand(1, 3, 32, 64)).shape == (1, 2, 32, 64)


def test_an_encoder_of_ones_own_is_taken_from_its_folder(tmp_path: Path) -> None:
    write(tmp_path)
    mine = timm.create_model("vit_nano4_convstem", num_classes=5, img_size=64, patch_size=8)
    timm.models.save_for_hf(mine, tmp_path / "mine", safe_serialization=True)
    done = recipe(tmp_path, "--weights", str(tmp_path / "mine"), "--lr", "0", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    encoder = smp.from_pretrained(tmp_path / "out").encoder.model
    others = timm.create_model("vit_nano4_convstem_pyramid", features_only=True, patch_size=8)
    for model, same in ((encoder, True), (others, False)):
        found = model.state_dict()["trunk.blocks.0.attn.qkv.weight"]
        assert torch.equal(found, mine.state_dict()["blocks.0.attn.qkv.weight"]) == same


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    assert "has no folder images/" in recipe(tmp_path).stderr
    write(tmp_path)
    assert re.search(r"masks/\d.png must have one channel", recipe(tmp_path, "--classes", "1").stderr)
    assert "8 images to train on and 2 held out are too few" in recipe(tmp_path, "--batch-size", "9").stderr
    (tmp_path / "masks" / "3.png").unlink()
    assert "no masks/NAME.png for 1 of 10 images: 3" in recipe(tmp_path).stderr
