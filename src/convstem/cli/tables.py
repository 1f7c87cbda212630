"""Rows as text."""

from __future__ import annotations

from collections.abc import Sequence

from convstem.errors import printable


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns, the first row underlined; a cell is one line."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
