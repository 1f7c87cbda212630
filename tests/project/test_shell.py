"""Shell lines of the README, the pages and the recipes run offline if possible; others are parsed.

A `convstem` line runs in an empty home: it works, or one sentence says what is missing. A line for one of our modules
is parsed by the module's parser. timm's and torchvision's `train.py` are in no package, so only models and files in
their lines are checked; tests/training/test_recipes.py parses them if the scripts are given.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import timm
import tomllib
import torchvision

from convstem.cli.main import main
from tests.support.checkout import ROOT
from tests.support.parsed import parses

pytestmark = pytest.mark.full

USERS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "recipes" / "README.md"]
PAGES = [
    *USERS,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "hub_cards").glob("*.md")),
]
FENCE = re.compile(r"^ *```(?:bash|console)\n(.*?)^ *```", re.M | re.S)
INDENTED = re.compile(r"^    ((?:convstem|python|torchrun|pip|make) (?:.*\\\n)*.*)", re.M)
INLINE = re.compile(r"`((?:convstem|python -m|pip install|make) [^`]+)`")
OURS = ("benchmarks", "experiments", "tests", "tools")


def shell_lines(page: str) -> Iterator[str]:
    """Yield the shell lines of a page, without comments."""
    fenced = "\n".join(FENCE.findall(page))
    plain = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    for block in (fenced, "\n".join(INDENTED.findall(plain))):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if command := re.sub(r"(^|\s{2,})#.*", "", line).strip():
                yield command


TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
LINES = [(page, line) for page in PAGES if page.name != "cli.md" for line in shell_lines(TEXTS[page])]
MENTIONS = [(page, line) for page in PAGES for line in INLINE.findall(TEXTS[page].replace("\n", " "))]


# Each check returns a line's fault, or an empty string.


def check_convstem(words: list[str]) -> str:
    """Check commands and options; `test_a_line_of_ours_runs` runs the lines."""
    command: Any = main
    left = words[1:]
    while isinstance(command, click.Group) and left and left[0] in command.commands:
        command = command.commands[left.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in left if word.startswith("-") and word.split("=")[0] not in {*known, "--help", "-h"}]
    unknown = [left[0], *unknown] if command is main and left else unknown
    return f"unknown: {' '.join(unknown)}" if unknown else ""


def check_python(words: list[str]) -> str:
    """Check that the script or module exists; `test_a_line_of_our_modules_parses` parses the options."""
    left = [word for word in words[1:] if word != "-P"]
    if left[0] == "-m" and left[1].split(".")[0] in OURS:
        return "" if module_file(left[1]) else f"there is no module {left[1]}"
    if left[0] == "-c":
        compile(left[1], "-c", "exec")
        return ""
    if left[0] == "-m":
        return "" if left[1] in ("pytest", "build", "convstem") else f"whose module is {left[1]}?"
    return check_train(left) if left[0] == "train.py" else "" if (ROOT / left[0]).is_file() else f"no file {left[0]}"


def module_file(name: str) -> Path | None:
    place = ROOT / name.replace(".", "/")
    return next((path for path in (place.with_suffix(".py"), place / "__main__.py") if path.is_file()), None)


def check_train(words: list[str]) -> str:
    """Check the models and files named in a line of timm's or torchvision's train.py."""
    value = dict(pairwise(words))
    if "--config" in value and not (ROOT / value["--config"]).is_file():
        return f"no file {value['--config']}"
    known = timm.is_model if "--data-path" not in value else torchvision.models.list_models().__contains__
    return "" if known(value.get("--model", "vit_nano4_convstem")) or "--config" in value else "no such model"


def check_torchrun(words: list[str]) -> str:
    return check_train(words[words.index("train.py") :])


def check_pip(words: list[str]) -> str:
    """Check that a pip line installs this checkout with existing extras, or known packages; convstem is unpublished."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name in (word for word in words[2:] if not word.startswith("-")):
        asked = re.fullmatch(r"\.(?:\[(.*)\])?", name)
        if asked is None and name not in ("onnx", "onnxscript", "openvino", "executorch"):
            return f"{name} is not on a registry, or is not known here"
        if asked and asked[1] and not set(asked[1].split(",")) <= set(extras):
            return f"no extra {asked[1]}"
    return ""


def check_make(words: list[str]) -> str:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    return "" if words[1] in targets else f"no target {words[1]}"


CHECKS: dict[str, Callable[[list[str]], str]] = {
    "convstem": check_convstem,
    "python": check_python,
    "torchrun": check_torchrun,
    "pip": check_pip,
    "make": check_make,
}


def wrong(line: str) -> str:
    words = shlex.split(line)
    return CHECKS[words[0]](words) if words[0] in CHECKS else f"{words[0]} is no program of this list"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("convstem list --pretraned", "unknown: --pretraned"),
        ("convstem lst", "unknown: lst"),
        ("python -m benchmarks.lode", "there is no module benchmarks.lode"),
        ("python recipes/gone.py", "no file recipes/gone.py"),
        ("python train.py --model vit_b16_convsten", "no such model"),
        ("torchrun train.py --data-path DATA --model vit_b16_convstem", "no such model"),
        ("python train.py --config recipes/gone.yaml", "no file recipes/gone.yaml"),
        ("pip install convstem", "convstem is not on a registry, or is not known here"),
        ("pip install .[tests]", "no extra tests"),
        ("make demos", "no target demos"),
        ("curl example.org", "curl is no program of this list"),
    ],
)
def test_what_is_wrong_with_a_line_is_found(line: str, said: str) -> None:
    assert wrong(line) == said


def test_the_lines_of_a_page_are_found() -> None:
    fences = "```bash\nmake demo    # first\nconvstem list \\\n    dinov3\n```\n\n```text\n    make\n```\n"
    page = fences + "\n    pip install \\\n        .\n"
    assert list(shell_lines(page)) == ["make demo", "convstem list dinov3", "pip install ."]
    assert len(LINES) > 40
    assert len(MENTIONS) > 40


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda item: getattr(item, "stem", item))
def test_a_line_names_what_exists(page: Path, line: str) -> None:
    assert wrong(line) == ""


@pytest.mark.parametrize(("page", "line"), MENTIONS, ids=lambda item: getattr(item, "stem", item))
def test_a_command_within_a_sentence_names_what_exists(page: Path, line: str) -> None:
    if "NAME" in line or "COMMAND" in line or (line.startswith("pip install") and page not in USERS):
        return
    assert wrong(line.rstrip(".").partition(" && ")[0].partition(",")[0].removesuffix("...")) == ""


# Lines of our modules


def parsed_lines() -> list[list[str]]:
    """Return the words of every line for one of our modules or scripts, options included."""
    lines = {line for _, line in LINES} | {line for _, line in MENTIONS if "NAME" not in line and "," not in line}
    found = []
    for line in sorted(lines):
        words = shlex.split(line)
        command = words[2:] if words[:2] == ["python", "-m"] else words[1:] if words[0] == "python" else [""]
        place = module_file(command[0]) if command[0].split(".")[0] in OURS else ROOT / command[0]
        bare = len(command) == 1 and not command[0].startswith("benchmarks")  # a mention of the module, no command
        if place and place.is_file() and not bare and parses(place):
            found.append(command)
    return found


def answers(lines: list[list[str]]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.parsed"],
        input=json.dumps(lines), cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_a_line_of_our_modules_parses() -> None:
    wrong_lines = [["benchmarks.load"], ["benchmarks.load", "--out", "DIR", "--no-such-flag"]]
    lines = parsed_lines()
    assert len(lines) > 12
    said = answers([*wrong_lines, *lines])
    assert "required" in said[0]
    assert "unrecognized" in said[1]
    assert {" ".join(line): text for line, text in zip(lines, said[2:], strict=True) if text} == {}


# Lines of convstem

RUN = sorted({line for page, line in LINES if line.startswith("convstem ") and not line.startswith("convstem run ")})


@pytest.mark.parametrize("line", RUN)
def test_a_line_of_ours_runs_or_says_what_it_lacks(line: str, tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    env = {**kept, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "convstem", *shlex.split(line)[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    missing = "does not exist" in done.stderr  # the reader's own file
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or re.search(r"^Error: .{20}", done.stderr, re.M), done.stderr
    assert done.returncode in ((2,) if missing else (0, 1)), done.stderr
