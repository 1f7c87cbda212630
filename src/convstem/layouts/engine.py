"""Rows and tables of reversible renames. This file knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Row:
    """One reversible rename: timm's key template and the other layout's.

    Placeholders stand for whole parts of a key: ``{i}`` an index, ``{p}`` a parameter or buffer name, ``{n}`` the
    number of stem layers before the last 1x1.
    """

    timm: str
    other: str


@dataclass(frozen=True)
class Table:
    """The rows of one layout, tried in order; ``counter`` is the row whose indices give ``{n}``."""

    rows: tuple[Row, ...]
    counter: Row

    @cached_property
    def sides(self) -> dict[str, list[str]]:
        """The templates of each side, in row order."""
        return {"timm": [row.timm for row in self.rows], "other": [row.other for row in self.rows]}
