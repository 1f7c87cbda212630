"""Rows, layouts, and the translation of a state dict by rows. This file knows no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from convstem.errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor

_HOLE = re.compile(r"\{(?:(\d*)([in])(?:\+(\d+))?|([psw*]))\}")

_WORDS = {
    "p": "weight|bias",
    "s": "weight|bias|running_mean|running_var|num_batches_tracked",
    "w": r"[^./]+",
    "*": ".+",
}

_GROUPS = {"*": "rest"}


@dataclass(frozen=True)
class Operation:
    """What a row does to its tensors on the way to timm's layout, and the operation that undoes it."""

    name: str
    apply: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    inverse_name: str = ""
    inverse: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    """None where it cannot be undone: the layout can then be read, but not written."""


RENAME = Operation("rename", lambda tensors: tensors, "rename", lambda tensors: tensors)


@dataclass(frozen=True)
class Row:
    """A rename or an operation between timm's keys and another layout's.

    A key template has holes: ``{i}`` is an index and ``{3i+1}`` one computed from it, ``{n}`` is the number of stem
    layers before the last, ``{p}`` a parameter, ``{s}`` a parameter or statistic of a norm, ``{w}`` one part of a
    key, ``{*}`` all that follows.
    """

    timm: str | tuple[str, ...]
    other: str | tuple[str, ...]
    operation: Operation = RENAME

    @cached_property
    def sides(self) -> dict[str, tuple[str, ...]]:
        """The templates of each side."""
        pairs = (("timm", self.timm), ("other", self.other))
        return {side: (keys,) if isinstance(keys, str) else keys for side, keys in pairs}


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""The usual normalisation, by field of timm's pretrained cfg."""

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
"""The normalisation to [-1, 1]."""


@dataclass(frozen=True)
class Drop:
    """Keys that are left out, with the ground."""

    keys: str
    ground: str


@dataclass(frozen=True)
class Refusal:
    """Keys that make a checkpoint something that cannot be converted, with the reason."""

    keys: str
    reason: str


@dataclass(frozen=True)
class Layout:
    """How one library names and shapes the tensors of a ViT."""

    name: str
    title: str
    """What the checkpoint is called in a sentence: "a MoCo v3 checkpoint"."""
    rows: tuple[Row, ...]
    """Tried in order; the first that matches a key has it."""
    markers: tuple[str, ...]
    """Keys that only this layout has."""
    stem: tuple[str, int] = ("", 0)
    """A key of every stem layer, and what its largest index lacks to be the number of layers before the last."""
    has: tuple[str, ...] = ()
    """Keys of timm's that every model of the layout has, though not every ViT."""
    unless: str = ""
    """A key that shows a layout which has the same markers and more."""
    root: tuple[str, str] = ("", "")
    """A prefix that all keys have in a model with a classifier, and the classifier's keys, which do not."""
    heads: tuple[str, int] = ("", 0)
    """A key whose shape has the number of heads, and the axis."""
    spellings: tuple[tuple[str, str], ...] = ()
    """Other names of keys, as files or older releases have them, and the names in ``rows``."""
    drops: tuple[Drop, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    expresses: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Sizes that the layout's model class can have, by field of ``Sizes``; fields not named here are free."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """timm arguments that hold for every model of the layout, and that shapes do not tell."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """What the layout's models are usually fed, by field of timm's pretrained cfg; a checkpoint may say otherwise."""
    names: str = ""
    """timm's names of the layout's plain ViTs, with ``{size}``, ``{patch}`` and ``{img}``."""

    @cached_property
    def invertible(self) -> bool:
        """Whether state dicts can be converted to this layout too."""
        return all(row.operation.inverse for row in self.rows)


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
    operation = row.operation.apply if to == "timm" else row.operation.inverse
    assert operation is not None, "a layout whose rows have no inverse is not a target"
    try:
        tensors = operation([state_dict[key] for key in keys])
    except (IndexError, RuntimeError, ValueError) as error:
        shapes = ", ".join(f"{key} {list(state_dict[key].shape)}" for key in keys)
        raise ConversionError(f"shapes that cannot be right ({row.operation.name}): {shapes}") from error
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


def stem_layers(keys: Mapping[str, Any], layout: Layout) -> int:
    """Return the number of stem layers before the last, ``{n}``; 0 for a patchify ViT."""
    template, lacks = layout.stem
    indices = [found["i"] for key in keys if template and (found := match(template, key)) is not None]
    return max(indices, default=-lacks) + lacks
