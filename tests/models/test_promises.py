"""The matrix of promises: every kind of name keeps them at every door in every situation."""

from collections.abc import Iterator

import pytest

from tests.support.promises.cell import CELLS
from tests.support.promises.cells import ALL, CHECKED, check
from tests.support.promises.files import Shelf
from tests.support.promises.matrix import DOORS, KINDS, LISTED, SITUATIONS, listed


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path_factory.mktemp("promises"))
    yield shelf
    shelf.clear()


@pytest.fixture
def shelf(kind: str, shelves: Shelf) -> Iterator[Shelf]:
    """Models and files shared by one kind's cells. Those of the previous kind and of a finished cell are removed."""
    if shelves.kind != kind:
        shelves.clear()
        shelves.kind = kind
    yield shelves
    shelves.tidy()


OFTEN = [cell for cell in CHECKED if cell[0] in ("rule", "torchvision")][::3]
"""What the everyday tests check: a sample, since the same functions build and read all kinds."""

CELLS_OF = [
    pytest.param(*cell, id=" - ".join(cell), marks=[pytest.mark.full] * (cell not in OFTEN)) for cell in CHECKED
]


@pytest.mark.parametrize(("kind", "door", "situation"), CELLS_OF)
def test_promise(kind: str, door: str, situation: str, shelf: Shelf) -> None:
    check(kind, door, situation, shelf)


def test_every_cell_is_checked_or_listed_and_no_reason_is_idle() -> None:
    assert set(CELLS) == SITUATIONS
    assert {listed(*cell) for cell in ALL} - {None} == {row.reason for row in LISTED}
    kinds, doors, situations = map(set, zip(*CHECKED, strict=True))
    assert (kinds, doors, situations) == ({*KINDS}, {*DOORS}, SITUATIONS)
    assert len(CHECKED) > 500
