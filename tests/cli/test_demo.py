"""The demo writes into a new or existing folder. The script itself runs with --full, from a wheel."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from convstem.cli import demo_script
from convstem.cli.main import main
from convstem.registry import tables


@pytest.mark.parametrize("code", [0, 3])
def test_the_script_gets_images_and_a_folder(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        called.append(command)
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    out = tmp_path / "not" / "there"
    for _ in range(2):  # the second time the folder exists
        assert CliRunner().invoke(main, ["demo", "--out", str(out)]).exit_code == code
    assert out.is_dir()
    python, script, samples, folder = called[0]
    assert (python, Path(script).name, folder) == (sys.executable, "demo_script.py", str(out))
    assert Path(samples) == tables.data_dir("registry") / "cifar10_samples" and Path(samples).is_dir()
    assert called[0] == called[1]


def test_the_picture_marks_what_is_wrong(tmp_path: Path) -> None:
    images, labels, names, attribution = demo_script.read_samples(tables.data_dir("registry") / "cifar10_samples")
    assert (len(images) % len(names), len(labels), {image.size for image in images}) == (0, len(images), {(32, 32)})
    assert labels[: len(names) + 1] == [*range(len(names)), 0]
    assert attribution
    path = tmp_path / "p.png"
    guesses = [labels[0], (labels[1] + 1) % len(names)]
    demo_script.draw(images[:2], labels[:2], guesses, names, path)
    grid = np.asarray(Image.open(path).convert("RGB"))
    below = [grid[96:122, x : x + 96].reshape(-1, 3) for x in (0, 96)]
    tints = [{(r > g + 99, g > r + 99) for r, g, _ in pixels.tolist()} for pixels in below]
    assert tints[0] == {(False, False), (False, True)}  # white and green
    assert tints[1] == {(False, False), (True, False)}  # white and red
