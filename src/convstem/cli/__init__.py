"""The command line. Here: what several commands share: options, the reading of their values, how results are printed.

Not public: what is, is imported from ``convstem`` itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from convstem.errors import printable

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

FOLDER = click.Path(file_okay=False, path_type=Path)

OUT_FOLDER = click.option("--out", required=True, type=FOLDER, help="Folder to write.")

OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the model that is in the folder.")


def integers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Return the numbers of ``3,2,1``; the callback of an option."""
    try:
        return tuple(int(number) for number in text.split(",")) if text else None
    except ValueError:
        raise click.BadParameter(f"expected whole numbers separated by commas, such as 3,2,1; got {text!r}") from None


def numbers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Return the numbers of ``0.5,0.5,0.5``; the callback of an option."""
    try:
        return tuple(float(number) for number in text.split(",")) if text else None
    except ValueError:
        raise click.BadParameter(f"expected numbers separated by commas, such as 0.5,0.5,0.5; got {text!r}") from None


def say(line: object, err: bool = False) -> None:
    """Print one line, whatever is in it; see ``printable``."""
    click.echo(printable(line), err=err)


def say_lines(text: str, nl: bool = True) -> None:
    """Print several lines."""
    click.echo(printable(text, lines=True), nl=nl)


def print_json(value: Any) -> None:
    """Print a result for other programs."""
    click.echo(json.dumps(value, indent=2))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns, the first row underlined; a cell is one line."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
