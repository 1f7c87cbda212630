"""How ``tests.fuzz`` damages files: as bytes, and as JSON."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 10**6, 10**30, 1e-9, 1.5, -0.5, float("nan"), float("inf")),
    *("", "x", "10", "os.system", "\ud800", "x" * 5000),
    *([], [1], [1, 2, 3], [3, 32, 32], [0.5] * 3, [[]], ["a"], [7] * 2000, {}, {"a": 1}, {"depth": 1}),
)
"""Replacement values: other types, other sizes, and values of other fields."""


def flip(random: Random, data: bytearray, at: int) -> None:
    """Flip a bit."""
    data[at : at + 1] = bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1])


def overwrite(random: Random, data: bytearray, at: int) -> None:
    """Overwrite some bytes."""
    data[at : at + random.choice(LENGTHS)] = random.randbytes(random.choice(LENGTHS))


def remove(random: Random, data: bytearray, at: int) -> None:
    """Remove some bytes."""
    del data[at : at + random.choice(LENGTHS)]


def double(random: Random, data: bytearray, at: int) -> None:
    """Write some bytes twice."""
    data[at:at] = data[at : at + random.choice(LENGTHS)]


def insert(random: Random, data: bytearray, at: int) -> None:
    """Insert characters that have a meaning in JSON."""
    data[at:at] = random.choice((b"0", b"9", b",", b"}", b"]", b'"', b"\x00", b"-1", b"null"))


def truncate(random: Random, data: bytearray, at: int) -> None:
    """Cut the end off."""
    del data[at:]


def lie(random: Random, data: bytearray, at: int) -> None:
    """Change the first eight bytes, where safetensors has its header's length."""
    data[:8] = random.getrandbits(random.choice((8, 16, 64))).to_bytes(8, "little")


LENGTHS = (1, 1, 2, 8, 100)
SPOILERS = (flip, flip, overwrite, remove, double, insert, truncate, lie)


def spoil_bytes(random: Random, content: bytes) -> bytes:
    """Return bytes damaged in one to three places, half of them near the start."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        end = max(len(data), 1)
        random.choice(SPOILERS)(random, data, random.randrange(random.choice((end, min(end, 600)))))
    return bytes(data)


def spoil_tree(random: Random, tree: Any) -> bytes:
    """Return JSON changed in one to three places: a value replaced, removed, renamed or moved."""
    for _ in range(random.choice((1, 1, 2, 3))):
        tables = [node for node in _nodes(tree) if isinstance(node, (dict, list)) and node]
        if not tables:
            break
        table = random.choice(tables)
        key = random.choice(sorted(table)) if isinstance(table, dict) else random.randrange(len(table))
        change = random.randrange(5)
        if change < 2:
            table[key] = random.choice(VALUES)
        elif change == 2:
            del table[key]
        elif change == 3:
            table[key] = deepcopy(random.choice(list(_nodes(tree))))  # no node inside itself
        elif isinstance(table, dict):
            table[random.choice((f"{key}_", "depth", "file", "evil", "num_classes", "input_size"))] = table[key]
        tree = json.loads(json.dumps(tree, default=str))  # no two places share a table
    return json.dumps(tree).encode()


def _nodes(tree: Any) -> Any:
    yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)
