"""Writes the files that scripts of this folder generate, or compares them for ``--check``."""

from __future__ import annotations

from pathlib import Path


def write_or_check(target: Path, text: str, check: bool, command: str) -> int:
    """Write a generated file, or with ``check`` compare it; return the exit code: 1 if a compared file is stale.

    Args:
        target: the file.
        text: its new content.
        check: only compare.
        command: the script that writes it, for the message.
    """
    stale = not target.is_file() or target.read_text(encoding="utf-8") != text
    if check:
        print(f"{target.name} is stale: run python -m tools.{command}" if stale else f"{target.name} is current")
        return int(stale)
    target.write_text(text, encoding="utf-8")
    return 0
