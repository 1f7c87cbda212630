"""`convstem run` runs a script like Python: as the main module, with its arguments and its folder on the path."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from convstem.cli.main import main

SCRIPT = """
import json, os, sys
import beside
if __name__ == "__main__":
    switches = [os.environ[name] for name in ("TORCH_DEVICE_BACKEND_AUTOLOAD", "CONVSTEM_AUTOLOAD")]
    print(json.dumps([sys.argv[1:], beside.NAME, switches]))
"""


def test_a_script_is_the_main_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["convstem"])
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for name in ("TORCH_DEVICE_BACKEND_AUTOLOAD", "CONVSTEM_AUTOLOAD"):
        monkeypatch.setenv(name, "0")
    (tmp_path / "beside.py").write_text("NAME = 'beside'")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = CliRunner().invoke(main, ["run", str(tmp_path / "script.py"), "--epochs", "3"])
    monkeypatch.delitem(sys.modules, "beside")
    assert (done.exit_code, json.loads(done.output)) == (0, [["--epochs", "3"], "beside", ["1", "1"]])


def test_a_script_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["run", str(tmp_path / "train.py")])
    assert (done.exit_code, "does not exist" in done.output) == (2, True)
