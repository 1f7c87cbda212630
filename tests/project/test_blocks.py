"""Python blocks of the README, the pages and the cards run as a reader pastes them: alone, in an empty home.

A block that cannot run here says so in its first line. `# needs the Hub`: its offline error is checked. `# needs ...`
(a GPU, the reader's file): it is only compiled. A text block after a Python block, with at most a sentence in between,
is its output. The home has a `photo.jpg`, one of the images of `convstem demo`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.checkout import ROOT

pytestmark = pytest.mark.full

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "hub_cards").glob("vit_*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n(?:[^\n`#]+ this prints\n\n)?```text\n(.*?)^```)?", re.M | re.S)
BLOCKS = [
    pytest.param(block, printed, id=f"{page.stem}-{index}")
    for page in PAGES
    for index, (block, printed) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
]


def photograph() -> Image.Image:
    """Return a CIFAR-10 test image: the fourth of ``convstem demo``, a cat."""
    return Image.open(ROOT / "registry" / "cifar10_samples" / "images.png").convert("RGB").crop((96, 0, 128, 32))


def run(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command offline, in an empty home that is also the working folder."""
    photograph().save(home / "photo.jpg", format="PNG")  # lossless; Pillow looks at the content, not at the name
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    env = {**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1", "TERM": "dumb"}
    return subprocess.run([sys.executable, *command], cwd=home, env=env, capture_output=True, text=True, check=False)


def outcome(block: str, printed: str, home: Path) -> str:
    """Return a block's fault, or an empty string."""
    compile(block, "block", "exec")
    needs = re.match(r"# needs (.*)", block)
    if needs and not needs[1].startswith("the Hub"):
        return ""
    done = run(["-c", block], home)
    if needs:
        told = re.search(r"^convstem\.errors\.\w+: .*HF_HUB_OFFLINE", done.stderr, re.M)
        return "" if told else f"expected our error about the Hub; got {done.stderr[-500:] or 'none'}"
    if done.returncode:
        return done.stderr[-1500:]
    return f"expected {printed!r}; printed {done.stdout!r}" if printed and done.stdout != printed else ""


def test_what_is_wrong_with_a_block_is_found(tmp_path: Path) -> None:
    assert "NameError" in outcome("print(timm)\n", "", tmp_path)
    assert "printed '2\\n'" in outcome("print(1 + 1)\n", "3\n", tmp_path)
    assert outcome("print(1 + 1)\n", "2\n", tmp_path) == ""
    assert "got none" in outcome("# needs the Hub\nprint(1)\n", "", tmp_path)
    with pytest.raises(SyntaxError):
        outcome("# needs a GPU\nprint(\n", "", tmp_path)


@pytest.mark.parametrize(("block", "printed"), BLOCKS)
def test_a_block_runs_alone(block: str, printed: str, tmp_path: Path) -> None:
    assert outcome(block, printed, tmp_path) == ""


def test_modules_that_are_named_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"python -m ((?:benchmarks|experiments|tests|tools)(?:\.\w+)+)", text))
    assert len(named) > 5
    places = {name: ROOT / name.replace(".", "/") for name in named}
    there = {name for name, place in places.items()
             if place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()}  # fmt: skip
    assert sorted(named - there) == []
