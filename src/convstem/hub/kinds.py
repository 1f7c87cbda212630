"""Whether a value of a JSON file can be what an annotation asks for: ``Tuple[int, int]``, ``Optional[float]``, ..."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from convstem.errors import InvalidFileError

_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    float: ("a number", lambda value: is_number(value)),
    int: ("a whole number", lambda value: is_number(value) and isinstance(value, int)),
    str: ("text", lambda value: isinstance(value, str)),
    type(None): ("null", lambda value: value is None),
    Any: ("anything", lambda value: True),
}


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number, and not true or false."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)


def fits(value: Any, kind: Any) -> bool:
    """Tell whether a value read from JSON is of a kind. Classes and functions, which JSON cannot hold, are of none."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and _items_fit(value, parts)
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(item, parts[1]) for item in value.values())
    return kind in _PLAIN and _PLAIN[kind][1](value)


def _items_fit(values: Any, kinds: tuple[Any, ...]) -> bool:
    if len(kinds) == 1 or kinds[-1] is Ellipsis:  # timm writes Tuple[str] where it means any number of them
        return all(fits(value, kinds[0]) for value in values)
    return len(values) == len(kinds) and all(map(fits, values, kinds))


def in_words(kind: Any) -> str:
    """Return what a kind asks for, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(in_words, parts))))
    if origin is Literal:
        return f"one of {', '.join(sorted(map(repr, parts)))}"
    if origin in (list, tuple):
        count = "" if len(parts) == 1 or parts[-1] is Ellipsis else f"{len(parts)} times "
        return f"a list of {count}{in_words(parts[0])}"
    if origin is dict:
        return "an object"
    return _PLAIN[kind][0] if kind in _PLAIN else ""


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise ``InvalidFileError`` naming the first field of a ``config.json`` that is not of its kind."""
    for name, value in values.items():
        if not fits(value, kinds[name]):
            words = in_words(kinds[name]) or "left out"
            raise InvalidFileError(f"config.json: {name} must be {words}; got {short(value)}")


def short(value: Any) -> str:
    """Return the start of a value as JSON has it."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."
