"""Translates a state dict by the rows of a layout. This file knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from convstem.errors import ConversionError
from convstem.layouts.rows import Layout, Row
from convstem.layouts.templates import fill, match

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Translation:
    """A translated state dict, and where every key went or came from."""

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """New key -> the keys it was made from."""
    unknown: list[str] = field(default_factory=list)


def translate(state_dict: Mapping[str, Tensor], rows: Sequence[Row], to: str, n: int) -> Translation:
    """Translate a state dict by rows; tensors are shared where the operation allows it.

    Args:
        state_dict: tensors by key.
        rows: the rows, in order.
        to: the side to translate to, ``timm`` or ``other``.
        n: number of stem layers before the last.

    Raises:
        ConversionError: two keys become one, keys that belong together are incomplete, or a shape that an operation
            cannot take.
    """
    side = "other" if to == "timm" else "timm"
    result = Translation()
    templates = _templates(tuple(rows), side)
    groups: dict[tuple[int, tuple[tuple[str, Any], ...]], dict[int, str]] = {}
    for key in state_dict:
        found = _find(key, templates, n)
        if found is None:
            result.unknown.append(key)
            continue
        row, position, values = found
        group = groups.setdefault((row, tuple(sorted(values.items()))), {})
        if position in group:
            raise ConversionError(f"two keys of this state dict mean the same: {group[position]!r} and {key!r}")
        group[position] = key
    for (row, holes), group in groups.items():
        _apply(state_dict, rows[row], to, n, dict(holes), group, result)
    return result


def _find(key: str, templates: Sequence[tuple[str, int, int, str]], n: int) -> tuple[int, int, dict[str, Any]] | None:
    for start, index, position, template in templates:
        if key.startswith(start):  # spares most of the matching
            values = match(template, key, n)
            if values is not None:
                return index, position, values
    return None


@cache
def _templates(rows: tuple[Row, ...], side: str) -> list[tuple[str, int, int, str]]:
    """Return every template of one side with its start, row and position, in order."""
    return [
        (template.partition("{")[0], index, position, template)
        for index, row in enumerate(rows)
        for position, template in enumerate(row.sides[side])
    ]


def _apply(
    state_dict: Mapping[str, Tensor],
    row: Row,
    to: str,
    n: int,
    values: Mapping[str, Any],
    group: Mapping[int, str],
    result: Translation,
) -> None:
    wanted = row.sides["other" if to == "timm" else "timm"]
    if len(group) < len(wanted):
        missing = [fill(wanted[k], values, n) for k in range(len(wanted)) if k not in group]
        raise ConversionError(f"{', '.join(sorted(group.values()))} came without {', '.join(missing)}")
    keys = tuple(group[k] for k in range(len(wanted)))
    inward, step = to == "timm", row.operation
    change, name = (step.apply, step.name) if inward else (step.inverse, step.inverse_name)
    assert change is not None, "a layout whose rows have no inverse is not a target"
    try:
        tensors = change([state_dict[key] for key in keys])
    except (IndexError, RuntimeError, ValueError) as error:
        shapes = ", ".join(f"{key} {list(state_dict[key].shape)}" for key in keys)
        raise ConversionError(f"shapes that cannot be right ({name}): {shapes}") from error
    for template, tensor in zip(row.sides[to], tensors, strict=True):
        new = fill(template, values, n)
        if new in result.state_dict:
            both = sorted({*result.sources[new], *keys})
            raise ConversionError(f"two keys of this state dict become {new!r}: {', '.join(both)}")
        result.state_dict[new] = tensor
        result.sources[new] = keys


def counterpart(key: str, rows: Sequence[Row], n: int) -> str:
    """Return what the other layout calls a key of timm's, or the key itself if it has no row."""
    found = _find(key, _templates(tuple(rows), "timm"), n)
    if found is None:
        return key
    index, _, values = found
    return ", ".join(fill(template, values, n) for template in rows[index].sides["other"])


def stem_layers(keys: Mapping[str, Any], layout: Layout) -> int:
    """Return the number of stem layers before the last, ``{n}``; 0 for a patchify ViT."""
    template, lacks = layout.stem
    indices = [found["i"] for key in keys if template and (found := match(template, key)) is not None]
    return max(indices, default=-lacks) + lacks
