"""The command line. This file has what several commands share: options, parsing of their values, printing.

Not public: import public names from ``convstem``.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from convstem.errors import printable

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

FOLDER = click.Path(file_okay=False, path_type=Path)

OUT_FOLDER = click.option("--out", required=True, type=FOLDER, help="Folder to write; created if needed.")

OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the model in the folder.")


LONGEST_RULE = 120
"""Most dashes below a table's head when the terminal width is unknown."""


def label_list(context: click.Context, option: click.Parameter, path: str | None) -> list[str] | None:
    """Option callback: return the class names in a file (one per line, or a JSON list)."""
    from convstem.files.paths import path_errors
    from convstem.hub.config import read_text  # imports torch, which --help does not need

    if path is None:
        return None
    with path_errors("read", path):
        text = read_text(Path(path))
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{path} is not JSON: {error}") from None
    if not all(isinstance(name, str) for name in names):
        raise click.BadParameter(f"{path} holds more than names: expected one per line, or a JSON list of strings")
    return list(names)


LABELS = click.option(
    "--labels",
    type=click.Path(exists=True, dir_okay=False),
    callback=label_list,
    metavar="FILE",
    help="File of class names, one per line, or a JSON list.",
)


def integers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Option callback: return the integers in text such as ``3,2,1``."""
    try:
        return tuple(int(number) for number in text.split(",")) if text else None
    except ValueError:
        raise click.BadParameter(f"expected whole numbers separated by commas, such as 3,2,1; got {text!r}") from None


def numbers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Option callback: return the numbers in text such as ``0.5,0.5,0.5``."""
    try:
        return tuple(float(number) for number in text.split(",")) if text else None
    except ValueError:
        raise click.BadParameter(f"expected numbers separated by commas, such as 0.5,0.5,0.5; got {text!r}") from None


ERASE = "\r\x1b[K"
"""Clears the terminal line that holds the cursor."""


def _write_over(text: str) -> None:
    sys.stderr.write(ERASE + text)
    sys.stderr.flush()


class _Step(logging.Handler):
    """Show the library's latest step and the elapsed seconds on one terminal line."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.text, self.ended = time.monotonic(), "", threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Show the next step."""
        self.text = printable(record.getMessage())
        self.show()

    def show(self) -> None:
        """Rewrite the line."""
        if self.text and not self.ended.is_set():
            width = shutil.get_terminal_size().columns - 1
            line = f"[{time.monotonic() - self.began:3.0f} s] {self.text} ..."
            _write_over(line[:width])

    def run(self) -> None:
        """Refresh the line every second until the command ends."""
        while not self.ended.wait(1):
            self.show()


@contextmanager
def progress() -> Iterator[None]:
    """Show the current step and elapsed seconds on one line, erased at the end. Does nothing without a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    step, logger = _Step(), logging.getLogger("convstem.progress")
    before = logger.level
    logger.addHandler(step)
    logger.setLevel(logging.INFO)
    clock = threading.Thread(target=step.run, daemon=True)
    clock.start()
    try:
        yield
    finally:
        logger.removeHandler(step)
        logger.setLevel(before)
        step.ended.set()
        clock.join()
        _write_over("")


def say(line: object, err: bool = False) -> None:
    """Print one line, escaped by ``printable``."""
    click.echo(printable(line), err=err)


def say_lines(text: str, nl: bool = True) -> None:
    """Print several lines."""
    click.echo(printable(text, lines=True), nl=nl)


def print_json(value: Any) -> None:
    """Print a result for other programs."""
    click.echo(json.dumps(value, indent=2))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns, the first row underlined. Each cell is one line."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = min(max(map(len, lines)), shutil.get_terminal_size((LONGEST_RULE, 0)).columns)
    return "\n".join([lines[0], "-" * rule, *lines[1:]])
