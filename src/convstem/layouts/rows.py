"""What a layout is made of: rows of keys, what is left out or refused, and what is known of its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""The usual normalisation, by field of timm's pretrained cfg."""

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
"""The normalisation to [-1, 1]."""

PLAIN_TRUNK: Mapping[str, tuple[Any, ...]] = {
    "class_token": (True,),
    "class_position": (True,),
    "reg_tokens": (0,),
    "layer_scale": (False,),
    "qk_norm": (False,),
    "pre_norm": (False,),
    "fc_norm": (False,),
    "map_pool": (False,),
}
"""Sizes that the trunk of the first ViT can have, for ``Layout.expresses``."""


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
    """A rename or an operation between timm's keys and another layout's; keys are templates, see ``templates``."""

    timm: str | tuple[str, ...]
    other: str | tuple[str, ...]
    operation: Operation = RENAME

    @cached_property
    def sides(self) -> dict[str, tuple[str, ...]]:
        """The templates of each side."""
        pairs = (("timm", self.timm), ("other", self.other))
        return {side: (keys,) if isinstance(keys, str) else keys for side, keys in pairs}


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
