"""The page of the command line: what every command prints for ``--help``."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.testing import CliRunner

from convstem.cli.main import main

HEAD = """# Command line

What `convstem` and each of its commands print for `--help`. Written by `python -m tools.pages`.
"""
WIDTH = 100  # columns; click asks the terminal otherwise


def cli_page() -> str:
    """Return the page as Markdown."""
    return HEAD + "".join(
        f"\n## {' '.join(path)}\n\n```text\n{_help(path[1:])}```\n" for path in _commands(main, ("convstem",))
    )


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the words that lead to a command and to each below it, sorted."""
    yield path
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from _commands(child, (*path, name))


def _help(words: tuple[str, ...]) -> str:
    result = CliRunner().invoke(
        main, [*words, "--help"], prog_name="convstem", terminal_width=WIDTH, max_content_width=WIDTH
    )
    assert result.exit_code == 0, result.output
    return result.output
