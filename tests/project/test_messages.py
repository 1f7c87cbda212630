"""docs/messages.md has the text of every `raise` of the package, and troubleshooting.md its switches."""

import ast
import re
from pathlib import Path

from tools.messages import OURS, SOURCE, calls, messages, texts, told_in_words

DOCS = Path(__file__).parents[2] / "docs"

# Errors raised with another's text: the hosts', the Hub's, or that of an error listed elsewhere.
PASSED_ON = {
    "hub/failures.py": "str(error)",
    "registry/catalog.py": "unknown_name(entry.architecture)",
    "registry/tables.py": "error",
}

MADE_UP = """
def sentence(more):
    return f"no {more} here" if more else "nothing at all"

def fail(name, found):
    kind = PathError if found else MissingPathError
    if found == 1:
        raise ArgumentError(f"expected {name}; got {found!r}, " "which cannot work")
    if found == 2:
        raise errors.HubError(sentence(name))
    warn("this goes on " + f"with {name}")
    raise kind(f"cannot read {name}")
"""


def test_the_texts_of_a_made_up_module(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(MADE_UP)
    assert messages(tmp_path) == {
        "ArgumentError": {"expected …; got …, which cannot work"},
        "HubError": {"no … here", "nothing at all"},
        "MissingPathError": {"cannot read …"},
        "PathError": {"cannot read …"},
        "warn": {"this goes on with …"},
    }


def test_every_raise_has_a_text() -> None:
    files = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
    functions = {n.name: n for tree in files.values() for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    silent = [
        (path.relative_to(SOURCE).as_posix(), ast.unparse(call))
        for path, tree in files.items()
        for call, _ in calls(tree)
        if not any(told_in_words(text) for argument in call.args[:1] for text in texts(argument, functions))
    ]
    assert [each for each in silent if PASSED_ON.get(each[0], "\n") not in each[1]] == []


def test_every_error_class_that_is_used_has_a_section() -> None:
    sections = re.findall(r"^## (\w+)", (DOCS / "messages.md").read_text(encoding="utf-8"), re.M)
    assert set(OURS) - set(sections) == {"ConvStemError"}  # the root is never raised itself


def test_troubleshooting_has_every_switch() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.parent.rglob("*.py"))
    switches = set(re.findall(r"\bCONVSTEM_[A-Z]+(?:_[A-Z]+)*\b", code))
    assert len(switches) >= 3
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    assert {switch for switch in switches if switch not in page} == set()


def test_troubleshooting_quotes_what_is_said() -> None:
    quoted = re.findall(r'"([^"]+)"', (DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    code = re.sub(r'"\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.parent.rglob("*.py")))
    ours = [words for words in quoted if words[0].islower()]
    assert len(ours) >= 8
    assert [words for words in ours if words not in code and words != "pixels in range"] == []
