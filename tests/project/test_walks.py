"""The walks of a call are counted correctly, on a made-up package."""

import importlib
import sys
from collections import Counter
from pathlib import Path

import pytest

from tools import walks

NAMES = '''"""Names."""
def find():
    """Find."""
    return [one for one in map(lambda name: name, "ab")]
'''
LATE = """
def used():
    return 1
def other():
    return 2
KEPT = other()
"""
LOADING = """
from walked.registry.names import find
def load():
    from walked import late
    find(), find()
    return late.used()
"""
MODULES = {"registry/names": NAMES, "late": LATE, "loading": LOADING, "registry/__init__": "", "__init__": ""}


def write_package(folder: Path) -> Path:
    (folder / "registry").mkdir(parents=True)
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_functions_are_counted_once_and_imports_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write_package(tmp_path / "walked")
    monkeypatch.syspath_prepend(tmp_path)
    loading = importlib.import_module("walked.loading")
    found = walks.watch(loading.load, package)
    assert found == {"loading.py": {"load:3"}, "late.py": {"used:2"}, "registry/names.py": {"find:2", "<lambda>:4"}}
    assert {walks.room_of(file) for file in found} == {"loading", "late", "registry"}
    assert walks.watch(lambda: None, package) == {}
    del sys.modules["walked.late"]
    assert walks.watch(lambda: importlib.import_module("walked.late"), package) == {}


def test_a_room_has_its_files_lines_and_statements(tmp_path: Path) -> None:
    write_package(tmp_path / "convstem")
    found = walks.sizes(tmp_path)
    assert found["registry"] == Counter(files=2, lines=4, statements=2)  # docstrings do not count
    assert found["convstem"] == Counter(files=1)
    assert sum(found.values(), Counter())["files"] == len(MODULES)


@pytest.mark.full
def test_every_call_walks_through_the_package() -> None:
    found = {call: {walks.room_of(file) for file in walk} for call, walk in walks.walks(walks.ROOT / "src")}
    assert {call for call, rooms in found.items() if len(rooms) > 1} == set(walks.CALLS)
    assert "publishing" in found['convstem.push(folder, "org/new", license="apache-2.0", dry_run=True)']
