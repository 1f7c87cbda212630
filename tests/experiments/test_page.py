"""The experiments' page names existing scripts, and its commands parse."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`python -m (experiments\.[^`]+)`", PAGE)
SCRIPTS = {path.stem for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}


def test_the_page_names_scripts_that_exist() -> None:
    named = {shlex.split(command)[0].split(".")[1] for command in COMMANDS}
    assert {"nano4", "robustness", "transplant_gain"} < named <= {*SCRIPTS, "cifar10"}


PARSED = [command for command in COMMANDS if "--out" in command and "stem_norms" not in command]  # parses in its main


@pytest.mark.parametrize("command", PARSED)
def test_the_pages_commands_parse(command: str) -> None:
    name, *flags = shlex.split(command)
    module = importlib.import_module("experiments.cifar10.__main__" if name == "experiments.cifar10" else name)
    assert module.parse_args(flags).out
    with pytest.raises(SystemExit):
        module.parse_args([*flags, "--no-such-flag"])
