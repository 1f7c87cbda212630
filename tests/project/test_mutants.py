"""The mutant sampler changes one thing at a time, leaves wording alone, and counts correctly."""

import ast
from pathlib import Path

import pytest

from tools import mutants, mutations

MODULE = '''"""Module."""
from typing import TYPE_CHECKING, Literal
if TYPE_CHECKING:
    from a import b
SIZES = {"ä": 1}
"""Sizes == 3."""
@decorated(7)
def check(size: Literal["one"], loud=False) -> "Text":
    """Check 3 > 4."""
    if size == 3 and SIZES:
        raise ValueError(f"expected {3}", "x")
    warn("some words", stacklevel=2)
    zip(SIZES, strict=True)
    return [one for one in SIZES if one]
class Kept:
    size = 5
    def __repr__(self):
        return "kept"
'''


def found(text: str = MODULE) -> list[mutations.Mutant]:
    return mutations.mutants("convstem/registry/kept.py", text)


def test_each_change_is_one_and_wording_is_none() -> None:
    assert sorted((one.kind, one.name, one.before, one.after) for one in found()) == [
        ("branch", "check", "one", "not (one)"),
        ("branch", "check", "size == 3 and SIZES", "(size == 3 or SIZES)"),
        ("branch", "check", "size == 3 and SIZES", "not (size == 3 and SIZES)"),
        ("call", "check", 'warn("some words", stacklevel=2)', "pass"),
        ("call", "check", "zip(SIZES, strict=True)", "pass"),
        ("comparison", "check", "size == 3", "size != 3"),
        ("constant", "", '"ä"', "'äx'"),
        ("constant", "", "1", "2"),
        ("constant", "Kept", "5", "6"),
        ("constant", "check", "2", "3"),
        ("constant", "check", "3", "4"),
        ("constant", "check", "7", "8"),
        ("constant", "check", "False", "True"),
        ("keyword", "check", 'warn("some words", stacklevel=2)', "warn('some words')"),
        ("raise", "check", 'raise ValueError(f"expected {3}", "x")', "pass"),
        ("return", "check", "return [one for one in SIZES if one]", "return None"),
    ]


@pytest.mark.parametrize("path", sorted((mutants.ROOT / "src").rglob("*.py"))[::8], ids=lambda path: path.stem)
def test_a_changed_file_is_python_and_another_program(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    same = ast.dump(ast.parse(text))
    chosen = mutations.sample(mutations.mutants(str(path.relative_to(mutants.ROOT / "src")), text), 7, seed=1)
    assert all(ast.dump(ast.parse(one.apply(text.encode()))) != same for one in chosen)


def test_the_lines_are_those_that_a_test_must_pass() -> None:
    lines = {(one.name, one.before): one.lines for one in found()}
    assert lines["check", "3"] == (10, 10)  # the condition without its body
    assert lines["check", 'raise ValueError(f"expected {3}", "x")'] == (11, 11)
    assert lines["check", "7"] == lines["check", "False"] == (7, 14)  # the whole function
    assert lines["Kept", "5"] == (15, 18)
    assert lines["", "1"][0] == 1 and lines["", "1"][1] > len(MODULE.splitlines())


def test_the_sample_takes_each_kind_and_outlives_a_change_elsewhere() -> None:
    chosen = mutations.sample(found(), 7, seed=0)
    assert {one.kind for one in chosen} == {one.kind for one in found()}
    assert [one.id for one in chosen] == [one.id for one in mutations.sample(found("\n\n" + MODULE), 7, seed=0)]
    assert len({one.id for one in found()}) == len(found())
    samples = {tuple(one.id for one in mutations.sample(found(), 7, seed)) for seed in range(4)}
    assert len(samples) > 1


def test_own_tests_come_first_and_a_few_of_them_suffice_at_first() -> None:
    seconds = {"tests/a": 5.0, "tests/b": 20.0, "tests/c": 30.0}
    assert mutants.split(list(seconds), seconds, few=9, limit=26.0) == 2
    assert mutants.split(list(seconds), seconds, few=1, limit=26.0) == 1
    assert mutants.split(list(seconds), seconds, few=9, limit=1.0) == 1  # one runs, however long it takes
    assert mutants.split(list(seconds), seconds, few=9, limit=99.0) == 3
    asked = {"tests/hub/test_a.py::test_a": 1.0, "tests/stem/test_b.py::test_c": 9.0}
    asked |= {f"tests/stem/test_b.py::test_b[{index}]": float(index) for index in (2, 1)}
    assert [test[-4:] for test in mutants._spread(asked, "stem", asked)] == ["b[1]", "st_c", "b[2]", "st_a"]
    assert found()[0].room == "registry"
    assert mutants._is_own("tests/registry/test_names.py::test_a", "registry")
    assert not mutants._is_own("tests/registry/test_names.py::test_a", "regis")


def test_the_table_counts_what_could_be_noticed() -> None:
    rows = [
        {"id": "a", "room": "stem", "found": "killed"},
        {"id": "b", "room": "stem", "found": "survived"},
        {"id": "c", "room": "hub", "found": "survived"},
    ]
    assert mutants.table(rows, {"c": "it is never read"}).splitlines() == [
        "| in | mutants | killed | survived | equivalent | score |",
        "|---|---|---|---|---|---|",
        "| `hub` | 1 | 0 | 0 | 1 | - |",
        "| `stem` | 2 | 1 | 1 | 0 | 50 % |",
        "| `all` | 3 | 1 | 1 | 1 | 50 % |",
    ]
