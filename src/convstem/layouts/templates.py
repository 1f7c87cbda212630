"""Key templates: one line of text for many keys of a state dict.

A template has holes: ``{i}`` is an index and ``{3i+1}`` one computed from it, ``{n}`` is the number of stem layers
before the last, ``{p}`` a parameter, ``{s}`` a parameter or statistic of a norm, ``{w}`` one part of a key, ``{*}`` all
that follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

_HOLE = re.compile(r"\{(?:(\d*)([in])(?:\+(\d+))?|([psw*]))\}")

_WORDS = {
    "p": "weight|bias",
    "s": "weight|bias|running_mean|running_var|num_batches_tracked",
    "w": r"[^./]+",
    "*": ".+",
}

_GROUPS = {"*": "rest"}


def match(template: str, key: str, n: int = 0) -> dict[str, Any] | None:
    """Return the values of a template's holes if ``key`` fits it, else None."""
    regex, factor, offset = _compile(template, n)
    found = regex.fullmatch(key)
    if found is None:
        return None
    values: dict[str, Any] = found.groupdict()
    if "i" in values:
        index, rest = divmod(int(values["i"]) - offset, factor)
        if rest or index < 0:
            return None
        values["i"] = index
    return values


def fill(template: str, values: Mapping[str, Any], n: int = 0) -> str:
    """Return the key that a template makes of the values of its holes."""

    def hole(found: re.Match[str]) -> str:
        factor, letter, offset, word = found.groups()
        if word:
            return str(values[_GROUPS.get(word, word)])
        return str(int(factor or 1) * (n if letter == "n" else values["i"]) + int(offset or 0))

    return _HOLE.sub(hole, template)


def search(template: str, lines: str) -> str:
    """Return the first of several lines that fits a template, or an empty string."""
    found = _line(template).search(lines)
    return found[0] if found else ""


@cache
def _line(template: str) -> re.Pattern[str]:
    return re.compile(f"^{_compile(template, 0)[0].pattern}$", re.MULTILINE)


@cache
def _compile(template: str, n: int) -> tuple[re.Pattern[str], int, int]:
    """Return the pattern of a template, and factor and offset of its index."""
    parts, end, factor, offset = [], 0, 1, 0
    for hole in _HOLE.finditer(template):
        parts.append(re.escape(template[end : hole.start()]))
        end = hole.end()
        times, letter, plus, word = hole.groups()
        if word:
            parts.append(f"(?P<{_GROUPS.get(word, word)}>{_WORDS[word]})")
        elif letter == "i":
            factor, offset = int(times or 1), int(plus or 0)
            parts.append(r"(?P<i>0|[1-9]\d*)")
        else:
            parts.append(str(int(times or 1) * n + int(plus or 0)))
    return re.compile("".join([*parts, re.escape(template[end:])])), factor, offset
