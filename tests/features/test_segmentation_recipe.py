"""The segmentation recipe runs as a user would start it, on photographs with a mask."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.mark.full
@pytest.mark.parametrize("stem", [[], ["--train-stem"]])
def test_the_recipe_trains_and_saves(tmp_path: Path, stem: list[str]) -> None:
    from skimage import data

    photo = data.coffee()
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(10):
        tile = photo[40 * (index // 5) : 40 * (index // 5) + 40, 48 * (index % 5) : 48 * (index % 5) + 48]
        Image.fromarray(tile).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray((tile.mean(2) > 100).astype(np.uint8)).save(tmp_path / "masks" / f"{index}.png")
    command = [sys.executable, str(ROOT / "recipes/segmentation.py"), str(tmp_path), "--decoder", "FPN", *stem]
    command += ["--encoder", "vit_nano4_convstem_pyramid", "--pretrained", "--size", "32", "--epochs", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 2: mean IoU" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()
