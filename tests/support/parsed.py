"""Parse command lines of this repository's modules and scripts without running them.

``python -m tests.support.parsed`` reads lines (lists of words that start with a module or script) as JSON from standard
input and writes each parser's objection. It is one process because all of them import torch.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

PARSE = argparse.ArgumentParser.parse_args


class ParsedError(Exception):
    """Raised to stop after a line was parsed successfully."""


def parse(self: Any, args: Any = None, namespace: Any = None) -> None:
    """Stand in for ``ArgumentParser.parse_args``."""
    PARSE(self, args, namespace)
    raise ParsedError


def wrong(words: list[str]) -> str:
    """Return the parser's objection to a line, or an empty string."""
    sys.argv = words
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            run = runpy.run_path if words[0].endswith(".py") else runpy.run_module
            run(words[0], run_name="__main__")
    except ParsedError:
        return ""
    except SystemExit as stop:
        return said.getvalue() if stop.code else ""
    return "it ran without parsing anything"


def parses(place: Path) -> bool:
    """Return whether a module's file has a parser; without one it takes no options and would run."""
    return "parse_args(" in place.read_text(encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign,assignment]
    answers = [wrong(line) for line in json.load(sys.stdin)]
    print(json.dumps(answers))
