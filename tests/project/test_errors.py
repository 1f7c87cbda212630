"""Every error of convstem is a ConvStemError and the builtin class that Python code expects."""

import ast
import pickle
from pathlib import Path

import pytest

import convstem
from convstem import errors

SOURCE = Path(convstem.__file__).parent
CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]
# Not user mistakes: our own bugs, a changed host, Python's own protocol, retried transport. Also click's usage errors.
CLICK = {"click.BadParameter", "click.ClickException", "click.UsageError"}
OTHERS = {"AssertionError", "AttributeError", "ConnectionError", "FileNotFoundError", *CLICK}
HOST_CHANGED = {"RuntimeError": ["upstream.py"]}


@pytest.mark.parametrize("error", CLASSES)
def test_every_class_is_below_the_root_and_says_its_message_plainly(error: type[Exception]) -> None:
    assert issubclass(error, convstem.ConvStemError)
    raised = error("no 'a' here")
    assert str(raised) == "no 'a' here"
    assert type(pickle.loads(pickle.dumps(raised))) is error
    assert error is convstem.ConvStemError or issubclass(
        error, (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError)
    )


def test_nothing_else_is_raised() -> None:
    """Every class named in a `raise` is ours. A computed one (`explain(...)`, `error`) is the Hub's or re-raised."""
    ours = {error.__name__ for error in CLASSES}
    found: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found.setdefault(ast.unparse(node.exc.func), []).append(path.name)
    builtins = {name: places for name, places in found.items() if name[0].isupper() or "." in name}
    assert set(builtins) >= {"ArgumentError", "HubError"}  # negative control: the walk finds some
    assert {name: places for name, places in builtins.items() if name not in ours | OTHERS} == HOST_CHANGED
