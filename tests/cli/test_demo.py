"""The demo writes into a new or existing folder. The script itself runs with --full, from a wheel."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

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
