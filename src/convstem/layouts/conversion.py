"""Converts state dicts between layouts, and tells which layout one has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
from convstem.errors import ArgumentError
from convstem.layouts.engine import Table
from convstem.layouts.torchvision import TORCHVISION

_TABLES: dict[str, Table] = {"torchvision": TORCHVISION}


LAYOUTS = ("timm", *_TABLES)
"""Names that ``convert`` accepts."""


_PATTERNS = {"i": r"(?P<i>\d+)", "p": r"(?P<p>weight|bias|running_mean|running_var|num_batches_tracked)"}


def convert(state_dict: Mapping[str, Tensor], *, source: str, target: str) -> dict[str, Tensor]:
    """Return a state dict with the keys of another layout; tensors are shared, not copied.

    Args:
        state_dict: parameters and buffers by key, in the layout ``source``.
        source: layout of ``state_dict``, one of ``LAYOUTS``.
        target: layout to return, one of ``LAYOUTS``.

    Raises:
        ValueError: unknown layout, keys that ``source`` does not have, or two keys that become one.
    """
    for name in (source, target):
        if name not in LAYOUTS:
            raise ArgumentError(f"unknown layout {name!r}; the layouts are {', '.join(sorted(LAYOUTS))}")
    if source != "timm":
        state_dict = _rename(state_dict, _TABLES[source], source, "other", "timm")
    if target != "timm":
        state_dict = _rename(state_dict, _TABLES[target], "timm", "timm", "other")
    return dict(state_dict)


def detect_layout(state_dict: Mapping[str, object]) -> str | None:
    """Return the layout that has most of these keys, or None if none has any."""
    sides = {"timm": (TORCHVISION, "timm"), **{name: (table, "other") for name, table in _TABLES.items()}}
    hits = {name: _hits(state_dict, table.sides[side]) for name, (table, side) in sides.items()}
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] else None


def _hits(keys: Iterable[str], templates: list[str]) -> int:
    patterns = [_compile(template, r"\d+") for template in templates]
    return sum(any(pattern.fullmatch(key) for pattern in patterns) for key in keys)


def _compile(template: str, number: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[inp]\})", template)
    known = {"{i}": _PATTERNS["i"], "{p}": _PATTERNS["p"], "{n}": number}
    return re.compile("".join(known.get(part, re.escape(part)) for part in parts))


def _rename(state_dict: Mapping[str, Tensor], table: Table, layout: str, side: str, to: str) -> dict[str, Tensor]:
    number = _count(state_dict, getattr(table.counter, side))
    rows = [(_compile(getattr(row, side), str(number)), getattr(row, to)) for row in table.rows]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state_dict.items():
        match = next(((m, template) for pattern, template in rows if (m := pattern.fullmatch(key))), None)
        if match is None:
            unknown.append(key)
            continue
        new = match[1].format(**match[0].groupdict(), n=number)
        if new in renamed:
            raise ArgumentError(f"two keys of this state dict become {new!r}; the second one is {key!r}")
        renamed[new] = tensor
    if unknown:
        raise ArgumentError(_unknown_sentence(unknown, state_dict, layout))
    return renamed


def _count(keys: Iterable[str], template: str) -> int:
    pattern = _compile(template, "")
    return 1 + max((int(m["i"]) for key in keys if (m := pattern.fullmatch(key))), default=-1)


def _unknown_sentence(unknown: list[str], state_dict: Mapping[str, object], layout: str) -> str:
    some = ", ".join(sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
    found = detect_layout(state_dict)
    hint = f"; the keys look like the layout {found!r}" if found not in (None, layout) else ""
    return f"{len(unknown)} of {len(state_dict)} keys are not in the layout {layout!r}: {some}{hint}"
