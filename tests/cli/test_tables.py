"""Cells of the tables that `convstem list` prints."""

from typing import Any

import pytest

from convstem.cli.models import pixels, sizes, weights_cell


@pytest.mark.parametrize(
    ("names", "cell"),
    [(None, "from timm's vit_x"), ([], "-"), (["vit.a"], "a"), (["vit.a.b", "vit.c"], "a.b and 1 more")],
)
def test_weights_in_short(names: list[str] | None, cell: str) -> None:
    weights = None if names is None else [{"name": name} for name in names]
    assert weights_cell({"trunk": "vit_x", "weights": weights}) == cell


@pytest.mark.parametrize(
    ("info", "cells"),
    [
        ({"num_params": 5_460_000, "macs": 1_234_000_000, "img_size": 224}, ["5.5", "1.23", "224"]),
        ({"num_params": None, "macs": None, "img_size": [224, 448]}, ["-", "-", "224x448"]),
    ],
)
def test_sizes(info: dict[str, Any], cells: list[str]) -> None:
    assert sizes(info) == cells
    assert pixels(info["img_size"]) == cells[-1]
