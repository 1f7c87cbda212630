"""The two walks of CONTRIBUTING.md, followed literally in a copy of this checkout."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.support.checkout import ROOT, copy_checkout
from tests.support.script_runs import write_images

pytestmark = pytest.mark.full

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(title: str, language: str) -> list[str]:
    """Return the fenced blocks of one language in a section."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", section, re.M | re.S)


class Walk:
    """A copy of the checkout, and a contributor's actions in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = copy_checkout(folder)
        self.env = {**os.environ, "PYTHONPATH": str(self.folder / "src")}

    def run(self, block: str) -> str:
        """Run a block's commands and return their output."""
        printed = ""
        for line in block.strip().splitlines():
            words = shlex.split(line)
            command = ["-m", "convstem", *words[1:]] if words[0] == "convstem" else words[1:]
            assert words[0] in ("convstem", "python"), line
            done = subprocess.run(
                [sys.executable, *command], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (line, done.stdout + done.stderr)
            printed += done.stdout
        return printed

    def add_row(self, file: str, row: Mapping[str, Any]) -> None:
        """Add rows at the end of a file of the registry."""
        path = self.folder / "registry" / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **row}))


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    return Walk(tmp_path / "convstem")


def test_an_architecture_is_added(walk: Walk) -> None:
    (row,) = blocks("Adding an architecture", "json")
    show, tests = blocks("Adding an architecture", "console")
    with pytest.raises(AssertionError, match="unknown convstem model"):
        walk.run(show)
    walk.add_row("architectures.json", json.loads(f"{{{row}}}"))
    assert "vit_xs_16_convstem" in walk.run(show)
    assert "| `vit_xs16_convstem` |" in (walk.folder / "docs" / "sizes.md").read_text(encoding="utf-8")
    assert re.search(r"\b([4-9]|\d\d) passed", walk.run(tests))


def test_weights_are_added(walk: Walk, tmp_path: Path) -> None:
    (facts,) = blocks("Adding weights", "json")
    embed, card = blocks("Adding weights", "console")
    (walk.folder / "OUT").mkdir()
    torch.save({"state_dict": timm.create_model("vit_nano4_convstem").state_dict()}, walk.folder / "OUT/last.pth.tar")
    write_images(walk.folder / "DATA")
    row = json.loads(walk.run(embed).splitlines()[-1])
    walk.add_row("weights.json", {name: {**fields, **json.loads(f"{{{facts}}}")} for name, fields in row.items()})
    assert "vit_nano4_convstem.mine" in walk.run(card)
    assert (walk.folder / "hub_cards" / "vit_nano4_convstem.mine.md").is_file()
    loaded = "import timm; timm.create_model('vit_nano4_convstem.mine', pretrained=True)"
    subprocess.run([sys.executable, "-c", loaded], env=walk.env, check=True)
