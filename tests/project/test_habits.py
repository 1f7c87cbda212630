"""`make help` lists every target, and the pre-commit hook runs CI's linters."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("arguments", [["help"], []])
def test_make_help_explains_every_target(arguments: Any) -> None:
    printed = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (phony,) = re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.M)
    assert re.findall(r"^make (\w+) +\S", printed, re.M) == phony.split()


def test_a_commit_runs_what_ci_lints() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (local,) = config["repos"]
    (hook,) = local["hooks"]
    assert (local["repo"], hook["language"]) == ("local", "system")  # nothing is fetched from the network
    assert f"\n{hook['entry']}\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
