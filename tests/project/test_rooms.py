"""The rooms: no import cycle, dependencies point one way, short files, few at the top; CONTRIBUTING and tests agree."""

import re
from pathlib import Path
from typing import Any

from tools import rooms

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "convstem"

LEVELS = (
    ("errors", "upstream"),
    ("registry",),
    ("layouts",),
    ("files", "stem"),
    ("hub",),
    ("inference", "features", "transplanting"),
    ("weights",),
    ("models",),
    ("hosts",),
    ("loading", "publishing"),
    ("convstem",),  # the public names
    ("cli",),
    ("__main__",),
)
"""A room imports only from the lines above it; rooms on one line do not import each other."""

LEVEL = {room: level for level, names in enumerate(LEVELS) for room in names}
FILES_AT_THE_TOP = 9
LINES = 400
TEST_FOLDERS = {"experiments", "fuzz", "libraries", "project", "support", "training"}
"""Folders of tests/ for no room: the repository itself, helpers, scripts, whole training runs."""


def violations(package: Path) -> list[str]:
    """Return the faults in a package's imports, one sentence each."""
    graph = rooms.import_graph(package)
    found = [f"{' <-> '.join(sorted(circle))}: an import circle" for circle in rooms.circles(graph)]
    for name in sorted(graph):
        for target in sorted(graph[name]):
            here, there = rooms.room(name), rooms.room(target)
            if unknown := {here, there} - set(LEVEL):
                found.append(f"{', '.join(sorted(unknown))}: a room without a place in LEVELS and CONTRIBUTING.md")
            elif here != there and LEVEL[there] >= LEVEL[here]:
                found.append(f"{name} imports {target}: {here} must not depend on {there}")
    top = sorted(path.name for path in package.iterdir() if path.is_file())
    if len(top) > FILES_AT_THE_TOP:
        found.append(f"{len(top)} files at the top, {FILES_AT_THE_TOP} at most: {', '.join(top)}")
    for path in sorted(package.rglob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES:
            found.append(f"{path.relative_to(package)} has {lines} lines, {LINES} at most: split it")
    return found


def write_package(folder: Path, **files: Any) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    return folder


def test_what_is_wrong_in_a_made_up_package_is_found(tmp_path: Path) -> None:
    package = write_package(
        tmp_path / "convstem",
        registry__tables="def rows():\n    from convstem.stem import embed\n",  # up, inside a function
        stem__embed="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..files import cache\n",  # sideways
        files__cache="import convstem.files.paths\n",
        files__paths="def late():\n    from . import cache\n",  # a cycle, one way inside a function
        attic__old="from convstem.registry import tables\n" + "#\n" * 400,
        **dict.fromkeys("abcdefghi", ""),
    )
    assert violations(package) == [
        "convstem.files.cache <-> convstem.files.paths: an import circle",
        "attic: a room without a place in LEVELS and CONTRIBUTING.md",
        "convstem.registry.tables imports convstem.stem.embed: registry must not depend on stem",
        "convstem.stem.embed imports convstem.files.cache: stem must not depend on files",
        "10 files at the top, 9 at most: __init__.py, a.py, b.py, c.py, d.py, e.py, f.py, g.py, h.py, i.py",
        "attic/old.py has 401 lines, 400 at most: split it",
    ]


def test_a_stub_counts_as_its_module(tmp_path: Path) -> None:
    package = write_package(tmp_path / "convstem", cli__main="import convstem\n", loading="")
    (package / "__init__.pyi").write_text("from .cli.main import main as main\n")
    assert violations(package)[0] == "convstem <-> convstem.cli.main: an import circle"


def test_the_figures_of_a_small_graph() -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": {"d"}, "d": {"c"}}
    assert (rooms.levels(graph), rooms.arrows(graph), rooms.circles(graph)) == (3, 5, [{"c", "d"}])


def test_no_circle_one_direction_and_a_small_top() -> None:
    assert violations(PACKAGE) == []


def test_contributing_lists_the_rooms_in_the_order_of_their_dependencies() -> None:
    (rows,) = re.findall(r"^\| room \|.*\n((?:\|.*\n)+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    table = re.findall(r"^\| `(\w+)/?` \|", rows, re.M)
    exist = set(rooms.rooms(rooms.import_graph(PACKAGE)))
    assert sorted(exist - set(table)) == []  # rooms without a row
    assert table == [room for room in LEVEL if room in exist]


def test_the_tests_mirror_the_rooms() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    in_folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    of_one_file = {name for name in LEVEL if (PACKAGE / f"{name}.py").exists()}
    assert in_folders <= folders - TEST_FOLDERS <= in_folders | of_one_file
