"""All cells of the matrix, and the checks of those that are not listed."""

from __future__ import annotations

from tests.support.promises import calls, plain, torchvisions, whole  # noqa: F401 (they fill the tables)
from tests.support.promises.cell import CELLS, Cell
from tests.support.promises.files import Shelf
from tests.support.promises.matrix import DOORS, KINDS, SITUATIONS, listed

ALL = [(kind, door, situation) for kind in KINDS for door in DOORS for situation in sorted(SITUATIONS)]
CHECKED = [cell for cell in ALL if listed(*cell) is None]


def check(kind: str, door: str, situation: str, shelf: Shelf) -> None:
    """Check one cell."""
    table = torchvisions.CELLS if kind == "torchvision" else CELLS
    table[situation](Cell(kind, door, shelf))
