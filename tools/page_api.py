"""The page of the public names: a table of them, and what mkdocstrings puts their docstrings in place of."""

from __future__ import annotations

import inspect

import convstem

HEAD = """# Python API

These are all public names, importable from `convstem`. The site shows their full documentation below; as plain Markdown
this page has the table alone, and `help(convstem.load)` prints the rest. Written by `python -m tools.pages`.

| name | what it does |
|---|---|
"""


def api_page() -> str:
    """Return the page as Markdown."""
    names = [name for name in sorted(dir(convstem), key=str.lower) if not name.startswith("__")]
    rows = "".join(f"| `{name}` | {_first_line(name)} |\n" for name in names)
    return HEAD + rows + "".join(f"\n::: convstem.{name}\n" for name in names)


def _first_line(name: str) -> str:
    """Return the first paragraph of a public name's docstring, in one line of Markdown."""
    paragraph = inspect.getdoc(getattr(convstem, name)).partition("\n\n")[0]
    return " ".join(paragraph.split()).replace("``", "`").replace("|", r"\|")
