"""A short, deterministic run of the fuzzer; ``python -m tests.fuzz`` runs longer ones."""

import random
import re
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main, many, one
from tests.fuzz.mutations import spoil_bytes, spoil_tree
from tests.fuzz.readers import READERS, Reader, WrongContentError, compare, small_weights

CASES = {"config": 60, "layout": 60, "registry": 150, "weights": 400}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_right_or_refused(name: str, tmp_path: Path) -> None:
    result = many(READERS[name], 0, lambda case: case == CASES[name], tmp_path)
    assert result.failures == []
    assert result.counts["right"] > 0, result  # some damage is harmless
    assert result.counts.total() > result.counts["right"]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_the_command_counts_every_reader(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CONVSTEM_CACHE", "")  # restored afterwards: the command sets it
    assert main(["--seconds", "1", "--seed", "7"]) == 0
    assert re.findall(r"^(\w+) .* cases: .* 0 failures$", capsys.readouterr().out, re.M) == list(READERS)


def test_what_is_neither_right_nor_refused_is_a_failure(tmp_path: Path) -> None:
    def bad(random: random.Random, folder: Path) -> None:
        raise KeyError("raw")

    result = many(Reader("bad", bad), 3, lambda case: case == 2, tmp_path)
    assert result.failures == [f"bad --seed 3 --case {case}: KeyError: 'raw'" for case in (0, 1)]
    with pytest.raises(KeyError, match="raw"):
        one(Reader("bad", bad), 3, 0, tmp_path)
    with pytest.raises(WrongContentError, match="other keys"):
        compare({}, {"a": 1})


def test_a_case_is_the_same_each_time() -> None:
    for seed in range(50):
        assert spoil_bytes(random.Random(seed), small_weights()) == spoil_bytes(random.Random(seed), small_weights())
        tree = {"a": [1, {"b": 2}], "c": "d"}
        assert spoil_tree(random.Random(seed), tree) == spoil_tree(random.Random(seed), {"a": [1, {"b": 2}], "c": "d"})
