"""Creates environments, runs the everyday tests in them, and prints which were run.

    python -m tools.environments                    # list them
    python -m tools.environments floors newest      # as CI does beside the full suite
    python -m tools.environments prereleases        # to see what would break next

An environment is a folder in build/environments, made anew for each run and removed once its tests have passed: each
takes gigabytes, and a full disk fails hundreds of tests without a word about disks. A missing interpreter is reported,
but is not a failure. The results are in build/environments/results.txt.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / "build" / "environments"
ROOM = 10
"""Free gigabytes that an environment needs while it is installed and its tests run; 9 measured."""


@dataclass(frozen=True)
class Environment:
    """One way to install convstem."""

    python: str
    """Name of the interpreter."""
    about: str
    floors: bool = False
    """Whether each dependency has exactly the version in pyproject.toml."""
    pip: tuple[str, ...] = ()
    """Further arguments of ``pip install``."""


ENVIRONMENTS = {
    "floors": Environment("python3.10", "the oldest Python and every dependency at its floor", floors=True),
    "newest": Environment(
        "python3.13", "the newest Python that torch, timm and the tests run on, newest of everything"
    ),
    "prereleases": Environment("python3", "newest of everything, pre-releases too", pip=("--pre", "--upgrade")),
}


def floors(pyproject: str) -> list[str]:
    """Return a pin for each dependency of the project's table: ``torch>=2.5.1`` becomes ``torch==2.5.1``.

    Raises:
        ValueError: a dependency without a floor.
    """
    (table,) = re.findall(r"^dependencies = \[\n(.*?)^\]", pyproject, re.M | re.S)
    stated = re.findall(r'^ *"([^"]+)"', table, re.M)
    if without := [line for line in stated if not re.fullmatch(r"[\w.-]+>=[\w.]+", line)]:
        raise ValueError(f"expected NAME>=VERSION; got {', '.join(without)}")
    return [line.replace(">=", "==") for line in stated]


def interpreter(name: str) -> str | None:
    """Return the path of a Python that starts, or None."""
    path = shutil.which(name)
    if path is None or subprocess.run([path, "--version"], capture_output=True, check=False).returncode:
        return None  # pyenv has a file for each version, but runs only those that are enabled
    return path


def install(name: str, python: str) -> Path:
    """Create an environment and return its Python."""
    environment, folder = ENVIRONMENTS[name], HOME / name
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    inside = folder / "bin" / "python"
    pip = [str(inside), "-m", "pip", "install", "--quiet", "--no-cache-dir"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    pins = floors((ROOT / "pyproject.toml").read_text(encoding="utf-8")) if environment.floors else []
    subprocess.run([*pip, "--no-compile", *environment.pip, *pins, "--editable", ".[test]"], cwd=ROOT, check=True)
    return inside


def test(name: str) -> str:
    """Run the everyday tests in an environment and return the result in words."""
    python = interpreter(ENVIRONMENTS[name].python)
    if python is None:
        return f"not run: there is no {ENVIRONMENTS[name].python} here"
    free = shutil.disk_usage(HOME).free / 1e9
    if free < ROOM:
        return f"FAILED: needs {ROOM} GB of free disk, and there are {free:.1f}"
    try:
        inside = install(name, python)
    except subprocess.CalledProcessError as error:
        return f"FAILED: could not be installed, {' '.join(error.cmd)} returned {error.returncode}"
    report = f"--junit-xml={HOME / name}.xml"
    options = ["--numprocesses", "auto", "--dist", "worksteal", "-p", "no:cacheprovider", "--quiet", report]
    done = subprocess.run([str(inside), "-m", "pytest", *options], cwd=ROOT, check=False)
    if done.returncode:
        return "FAILED"
    shutil.rmtree(HOME / name)
    return "passed"


def main(names: Sequence[str]) -> int:
    """Test the named environments, or list all; return 1 if one failed."""
    if not names:
        print("\n".join(f"{name:12} {each.python:11} {each.about}" for name, each in ENVIRONMENTS.items()))
        return 0
    if unknown := sorted(set(names) - set(ENVIRONMENTS)):
        raise SystemExit(f"unknown environment {', '.join(unknown)}; there are {', '.join(sorted(ENVIRONMENTS))}")
    HOME.mkdir(parents=True, exist_ok=True)
    results = {name: test(name) for name in names}
    lines = "".join(f"environment {name}: {result}\n" for name, result in results.items())
    (HOME / "results.txt").write_text(lines, encoding="utf-8")
    print(lines, end="")
    return int(any(result.startswith("FAILED") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
