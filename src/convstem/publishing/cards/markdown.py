"""Words of a file's in a card of ours: as text, never as markdown of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ACTIVE = re.compile(r"[\\`*\[\]<>|~&$]")
"""What begins emphasis, code, links, images, HTML, tables and formulas."""

_START = re.compile(r"^([#+=-]|\d+[.)])")
"""What begins headings, lists and rules, at the start of a paragraph."""


def plain(text: str) -> str:
    """Return a text as one line that markdown shows as it is."""
    line = _ACTIVE.sub(r"\\\g<0>", " ".join(text.split()))
    return _START.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)


def paragraphs(sentences: Iterable[str]) -> str:
    """Return sentences, as notes have them without capital and full stop, as further paragraphs."""
    return "".join(f"\n\n{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def code(text: str) -> str:
    """Return a name between backticks."""
    return f"`{' '.join(text.replace('`', ' ').split())}`"
