"""Prints how many files, rooms and functions of the package a few calls pass through, and the size of each room.

    python -m tools.walks                      # of this checkout
    python -m tools.walks --src OTHER/src      # of another one, to compare

Each call runs in a separate process with its hosts already imported, empty caches, and a local stand-in for the Hub.
Code that runs during an import does not count, nor do comprehensions, which newer Pythons do not call.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

from tools.rooms import room

ROOT = Path(__file__).parents[1]

CALLS = {
    'timm.create_model("vit_nano4_convstem", pretrained=True)': "import convstem, timm",
    'torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT")': "import convstem, timm, torchvision",
    "convstem.load(folder)": "import convstem, timm, torchvision",
    'convstem.load("org/model")': "import convstem, timm, torchvision",
    "convstem.transplant(model)": """
import convstem, timm, torchvision
model = timm.create_model("vit_tiny_patch16_224", depth=1)
""",
    'convstem.convert(state_dict, target="torchvision", num_heads=3)': """
import convstem, timm, torchvision
state_dict = timm.create_model("vit_nano4_convstem").state_dict()
""",
    'command("convert", file, "--out", out, "--num-heads", "3")': """
import timm, torchvision
from convstem.cli.main import main
command = lambda *words: main([*map(str, words)], standalone_mode=False)
""",
    'convstem.push(folder, "org/new", license="apache-2.0", dry_run=True)': "import convstem, timm, torchvision",
}
"""Call -> code that runs before it; ``folder`` and ``file`` have the embedded model, ``out`` is for a result."""

PREPARATION = 'import convstem\nconvstem.pull("vit_nano4_convstem.cifar10", out=folder)'

Walk = Mapping[str, list[str]]
"""File, relative to the package -> its functions that were called, with their lines."""


def watch(call: Callable[[], None], package: Path) -> dict[str, set[str]]:
    """Return the functions of a package that a call passes through, by file."""
    found: dict[str, set[str]] = defaultdict(set)
    importing: Counter[int] = Counter()  # number of modules being imported, by thread

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event not in ("call", "return"):
            return
        code, thread = frame.f_code, threading.get_ident()
        if code.co_name == "<module>" and code.co_filename != "<string>":
            importing[thread] += 1 if event == "call" else -1
        elif event == "call" and not importing[thread] and counts(code.co_name) and is_inside(code.co_filename):
            found[str(Path(code.co_filename).relative_to(package))].add(f"{code.co_name}:{code.co_firstlineno}")

    def is_inside(file: str) -> bool:
        return file.startswith(f"{package}{os.sep}")

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def counts(name: str) -> bool:
    """Return whether a code object of this name is a function in every Python version."""
    return not name.startswith("<") or name == "<lambda>"


def run_one(before: str, call: str, package: Path, places: Mapping[str, str]) -> dict[str, list[str]]:
    """Run a call in this process and return its walk.

    Args:
        places: path of each name that the call may use.
    """
    names: dict[str, Any] = {name: Path(path) for name, path in places.items()}
    exec(before, names)
    walk = watch(lambda: exec(call, names), package)
    return {file: sorted(functions) for file, functions in walk.items()}


def in_process(source: Path, before: str, call: str, places: Mapping[str, Path], env: Mapping[str, str]) -> Walk:
    """Run a call in a fresh process, on the package in a source folder, and return its walk."""
    request = {"before": before, "call": call, "package": str(source / "convstem")}
    with tempfile.TemporaryDirectory(prefix="convstem-walk-") as home:
        own = {"HF_HOME": home, "CONVSTEM_CACHE": f"{home}/cache", "PYTHONPATH": f"{source}{os.pathsep}{ROOT}"}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "CONVSTEM_"))}
        done = subprocess.run(
            [sys.executable, "-m", "tools.walks", "--one"], cwd=home, env={**clean, **env, **own}, text=True,
            input=json.dumps({**request, "places": {name: str(path) for name, path in places.items()}}),
            capture_output=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{call} failed on {source}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def walks(source: Path) -> Iterator[tuple[str, Walk]]:
    """Yield every call and its walk."""
    from tests.support.hub_server.server import HubServer

    with closing(HubServer()) as hub, tempfile.TemporaryDirectory(prefix="convstem-walks-") as place:
        folder = Path(place, "model")
        places = {"folder": folder, "file": folder / "model.safetensors", "out": Path(place, "out")}
        env = {**hub.env, "HF_TOKEN": "writer", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        in_process(source, PREPARATION, "pass", places, env)
        hub.store.create("org/model")
        hub.store.commit("org/model", "main", {path.name: path.read_bytes() for path in folder.iterdir()})
        for call, before in CALLS.items():
            yield call, in_process(source, before, call, places, env)


def room_of(file: str) -> str:
    """Return the room of a file, given relative to the package."""
    parts = Path(file).with_suffix("").parts
    return room(".".join(("convstem", *(parts[:-1] if parts[-1] == "__init__" else parts))))


def sizes(source: Path) -> dict[str, Counter[str]]:
    """Return the files, lines and statements of a source folder by room; docstrings are not statements."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for path in sorted(source.rglob("*.py")):
        inside = path.is_relative_to(source / "convstem")
        text = path.read_text(encoding="utf-8")
        name = room_of(str(path.relative_to(source / "convstem"))) if inside else path.stem
        found[name] += Counter(files=1, lines=len(text.splitlines()), statements=statements(ast.parse(text)))
    return found


def statements(tree: ast.AST) -> int:
    """Return the number of statements of a module, without docstrings and other lone constants."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    return sum(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in nodes)


def main() -> None:
    """Print the walks, then the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, default=ROOT / "src", help="folder that holds the package convstem")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # reads a request from standard input
    args = parser.parse_args()
    if args.one:
        request = json.load(sys.stdin)
        walk = run_one(request["before"], request["call"], Path(request["package"]), request["places"])
        print(f"\n{json.dumps(walk)}")
        return
    source = args.src.resolve()
    print(f"{'call':<72}{'files':>6}{'rooms':>7}{'functions':>11}")
    for call, passed in walks(source):
        functions = sum(map(len, passed.values()))
        print(f"{call:<72}{len(passed):>6}{len({room_of(file) for file in passed}):>7}{functions:>11}", flush=True)
    found = sizes(source)
    print(f"\n{'room':<24}{'files':>6}{'lines':>8}{'statements':>12}")
    for name, size in [*sorted(found.items()), ("all of src/", sum(found.values(), Counter()))]:
        print(f"{name:<24}{size['files']:>6}{size['lines']:>8,}{size['statements']:>12,}")


if __name__ == "__main__":
    main()
