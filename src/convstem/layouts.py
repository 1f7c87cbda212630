"""State-dict layouts as reversible tables. The engine below the tables knows no model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One reversible rename: timm's key template and the other layout's.

    Placeholders stand for whole parts of a key: ``{i}`` an index, ``{p}`` a parameter or buffer name, ``{n}`` the
    number of stem layers before the last 1x1.
    """

    timm: str
    other: str


@dataclass(frozen=True)
class Table:
    """The rows of one layout, tried in order; ``counter`` is the row whose indices give ``{n}``."""

    rows: tuple[Row, ...]
    counter: Row

    @cached_property
    def sides(self) -> dict[str, list[str]]:
        """The templates of each side, in row order."""
        return {"timm": [row.timm for row in self.rows], "other": [row.other for row in self.rows]}


_STEM_NORM = Row("patch_embed.backbone.{i}.bn.{p}", "conv_proj.conv_bn_relu_{i}.1.{p}")

# Source: torchvision/models/vision_transformer.py and timm/models/vision_transformer.py.
TORCHVISION = Table(
    rows=(
        Row("cls_token", "class_token"),
        Row("pos_embed", "encoder.pos_embedding"),
        Row("patch_embed.proj.{p}", "conv_proj.{p}"),  # patchify ViTs, which transplant reads
        _STEM_NORM,
        Row("patch_embed.backbone.{n}.conv.{p}", "conv_proj.conv_last.{p}"),  # before the layers: same shape of key
        Row("patch_embed.backbone.{i}.conv.{p}", "conv_proj.conv_bn_relu_{i}.0.{p}"),
        Row("blocks.{i}.norm1.{p}", "encoder.layers.encoder_layer_{i}.ln_1.{p}"),
        Row("blocks.{i}.attn.qkv.weight", "encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight"),
        Row("blocks.{i}.attn.qkv.bias", "encoder.layers.encoder_layer_{i}.self_attention.in_proj_bias"),
        Row("blocks.{i}.attn.proj.{p}", "encoder.layers.encoder_layer_{i}.self_attention.out_proj.{p}"),
        Row("blocks.{i}.norm2.{p}", "encoder.layers.encoder_layer_{i}.ln_2.{p}"),
        Row("blocks.{i}.mlp.fc1.{p}", "encoder.layers.encoder_layer_{i}.mlp.0.{p}"),
        Row("blocks.{i}.mlp.fc2.{p}", "encoder.layers.encoder_layer_{i}.mlp.3.{p}"),
        Row("norm.{p}", "encoder.ln.{p}"),
        Row("head.{p}", "heads.head.{p}"),
    ),
    counter=_STEM_NORM,
)

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
            raise ValueError(f"unknown layout {name!r}; the layouts are {', '.join(sorted(LAYOUTS))}")
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
            raise ValueError(f"two keys of this state dict become {new!r}; the second one is {key!r}")
        renamed[new] = tensor
    if unknown:
        raise ValueError(_unknown_sentence(unknown, state_dict, layout))
    return renamed


def _count(keys: Iterable[str], template: str) -> int:
    pattern = _compile(template, "")
    return 1 + max((int(m["i"]) for key in keys if (m := pattern.fullmatch(key))), default=-1)


def _unknown_sentence(unknown: list[str], state_dict: Mapping[str, object], layout: str) -> str:
    some = ", ".join(sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
    found = detect_layout(state_dict)
    hint = f"; the keys look like the layout {found!r}" if found not in (None, layout) else ""
    return f"{len(unknown)} of {len(state_dict)} keys are not in the layout {layout!r}: {some}{hint}"
