"""Files that a script of this folder generates: written, or with ``--check`` compared."""

from __future__ import annotations

from pathlib import Path


def write_or_check(target: Path, text: str, check: bool, command: str) -> int:
    """Write a generated file; with ``check`` only compare it. Return the exit code: 1 if the file is stale.

    Args:
        target: the file.
        text: what it should hold.
        check: compare, do not write.
        command: the script that writes it, for the message.
    """
    stale = not target.is_file() or target.read_text(encoding="utf-8") != text
    if check:
        print(f"{target.name} is stale: run python -m tools.{command}" if stale else f"{target.name} is current")
        return int(stale)
    target.write_text(text, encoding="utf-8")
    return 0
