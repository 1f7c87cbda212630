"""The public names: stated once, typed for callers, and imported only when they are used."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import convstem
from convstem import errors
from tools.pages import api_page

ROOT = Path(__file__).parents[2]
STUB = ROOT / "src" / "convstem" / "__init__.pyi"

CALLER = """
import convstem
reveal_type(convstem.load("vit_nano4_convstem", layout="torchvision"))
reveal_type(convstem.transplant("vit_base_patch16_224", stem=convstem.StemSpec((24, 96, 384, 1536))))
reveal_type(convstem.list_models("vit_*", pretrained=True))
convstem.load(1, layuot="x")
convstem.transplant("vit_base_patch16_224", stm="vit_b16_convstem")
convstem.StemSpec("vit_b16_convstem")
convstem.lod("vit_nano4_convstem")
"""


@pytest.mark.full  # takes half a minute if mypy has not cached torch yet
def test_a_type_checker_knows_the_public_names(tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_text(CALLER)
    command = [sys.executable, "-m", "mypy", str(tmp_path / "caller.py")]  # with the project's settings and cache
    env = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    findings = re.findall(r"caller.py:(\d+): (.*)", done.stdout)
    assert [text for line, text in findings if int(line) <= 5] == [
        'note: Revealed type is "torch.nn.modules.module.Module"',
        'note: Revealed type is "torch.nn.modules.module.Module"',
        'note: Revealed type is "list[str]"',
    ]
    errors = [text for _, text in findings if text.startswith("error")]
    assert [re.search(r"\[([\w-]+)\]$", text)[1] for text in errors] == [
        "arg-type",
        "call-arg",
        "arg-type",
        "attr-defined",
    ]
    assert 'did you mean "stem"?' in errors[1]
    assert 'maybe "load"?' in errors[3]


def test_the_stub_is_the_list() -> None:
    text = STUB.read_text(encoding="utf-8")
    stated = re.findall(r"import \w+ as (\w+)", text)
    assert stated
    places = {name: module for module, names in vars(convstem)["_NAMES"].items() for name in names}
    assert places == {name: module for module, name in re.findall(r"^from \.(\S+) import \w+ as (\w+)", text, re.M)}
    names: dict[str, object] = {}
    exec("from convstem import *", names)
    assert sorted(set(names) - {"__builtins__"}) == dir(convstem) == sorted(stated)
    assert all(getattr(convstem, name).__name__ == name for name in stated)


def documented(name: str, section: str) -> set[str]:
    """Return the names that a section of a public name's docstring explains."""
    text = re.search(
        rf"^ *{section}:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(getattr(convstem, name)) or "", re.MULTILINE | re.DOTALL
    )
    heads = re.findall(r"^    (\w[\w, ]*):", text[1], re.MULTILINE) if text else []
    return {word for head in heads for word in head.split(", ")}


FUNCTIONS = sorted(set(dir(convstem)) - {"ConvStemError"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_documents_its_arguments_and_errors(name: str) -> None:
    parameters = set(inspect.signature(getattr(convstem, name)).parameters)
    if len(parameters) >= 3:
        assert documented(name, "Args") == parameters
    raised = documented(name, "Raises")
    assert raised
    assert {error for error in raised if not hasattr(errors, error)} == set()


def missing_errors(page: str) -> list[str]:
    """Return the classes of ``convstem.errors`` without a row with a sentence on a page, or without a block."""
    classes = [name for name, value in vars(errors).items() if isinstance(value, type) and name != "ConvStemError"]
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:`\w+`(?:, )?)+ \| (\w.+\.) \|$", page, re.M))
    return [name for name in classes if name not in rows or f"\n::: convstem.errors.{name}\n" not in page]


def test_every_error_is_documented() -> None:
    page = api_page()
    assert missing_errors(page.replace("\n| `HubError` |", "\n| `ThatError` |")) == ["HubError"]
    assert missing_errors(page.replace("\n::: convstem.errors.PathError\n", "")) == ["PathError"]
    assert missing_errors(page) == []


def test_errors_are_reached_from_the_package() -> None:
    code = """
import sys
import convstem
assert issubclass(convstem.errors.HubError, convstem.ConvStemError)
print(sorted(n for n, v in vars(convstem.errors).items() if isinstance(v, type)))
assert "torch" not in sys.modules
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found == f"{sorted(name for name, value in vars(errors).items() if isinstance(value, type))}\n"


def test_every_room_says_that_it_is_not_public() -> None:
    rooms = sorted(path for path in STUB.parent.rglob("__init__.py") if path.parent != STUB.parent)
    assert len(rooms) > 10
    assert [str(path) for path in rooms if "Not public: " not in path.read_text(encoding="utf-8")] == []


@pytest.mark.full
def test_importing_convstem_is_light() -> None:
    code = """
import sys
import convstem
from convstem import ConvStemError, StemSpec, list_models
heavy = {"timm", "torch", "torchvision"}
assert not heavy & set(sys.modules)
convstem.load
assert heavy <= set(sys.modules)  # negative control
"""
    subprocess.run([sys.executable, "-c", code], check=True)
