"""The error for a checkpoint names the code that opening it would run. None of it runs."""

import pickle
from collections import OrderedDict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from convstem.errors import InvalidFileError, PathError
from convstem.files.checkpoint import read_checkpoint


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch expects protocol 2
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_plain_pickle_says_what_it_asks_for(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.pkl"
    content = OrderedDict(state={"a": Fraction(1, 2)}, best="fractions", of=Decimal(3))
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(InvalidFileError, match="it needs ") as caught:
        read_checkpoint(path)
    asked = str(caught.value).partition("it needs ")[2].partition(". If")[0].split(", ")
    assert {"decimal.Decimal", "fractions.Fraction"} <= set(asked)
    assert "collections.OrderedDict" not in asked and "best" not in str(
        asked
    )  # torch opens the one, runs not the other


def test_a_disk_that_fails_is_not_a_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    torch.save({"x": torch.ones(1)}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(PathError, match="cannot read .*a.pth: Input/output error"):
        read_checkpoint(tmp_path / "a.pth")
