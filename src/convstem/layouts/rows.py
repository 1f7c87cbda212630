"""The parts of a layout: key templates, operations on tensors, rows of both, and facts about its models.

A template stands for many keys of a state dict. Its holes: ``{i}`` is an index and ``{3i+1}`` one computed from it,
``{n}`` the number of stem layers before the last, ``{p}`` a parameter, ``{s}`` a parameter or statistic of a norm,
``{w}`` one part of a key, ``{*}`` the rest of the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from convstem.errors import ConversionError
from convstem.registry.records import IMAGENET_MEAN, IMAGENET_STD

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
    """Return a template with its holes filled."""

    def hole(found: re.Match[str]) -> str:
        factor, letter, offset, word = found.groups()
        if word:
            return str(values[_GROUPS.get(word, word)])
        return str(int(factor or 1) * (n if letter == "n" else values["i"]) + int(offset or 0))

    return _HOLE.sub(hole, template)


def search(template: str, lines: str) -> str:
    """Return the first line that fits a template, or an empty string."""
    found = _line(template).search(lines)
    return found[0] if found else ""


@cache
def _line(template: str) -> re.Pattern[str]:
    return re.compile(f"^{_compile(template, 0)[0].pattern}$", re.MULTILINE)


@cache
def _compile(template: str, n: int) -> tuple[re.Pattern[str], int, int]:
    """Return a template's pattern, and the factor and offset of its index."""
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


@dataclass(frozen=True)
class Operation:
    """What a row does to its tensors on the way to timm's layout, and the inverse."""

    name: str
    apply: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    inverse_name: str = ""
    inverse: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    """None if there is no inverse: the layout can then be read but not written."""


RENAME = Operation("rename", lambda tensors: tensors, "rename", lambda tensors: tensors)


def _each(change: Callable[[Tensor], Tensor]) -> Callable[..., list[Tensor]]:
    return lambda tensors: [change(tensor) for tensor in tensors]


SEQUENCE_FIRST = Operation(
    "permute sequence-first to batch-first",
    _each(lambda tensor: tensor.permute(1, 0, 2)),
    "permute batch-first to sequence-first",
    _each(lambda tensor: tensor.permute(1, 0, 2)),
)
"""[tokens, 1, width] <-> [1, tokens, width]."""


def _squeeze(tensor: Tensor) -> Tensor:
    if tensor.shape[0] != 1:
        raise ConversionError("the first axis is not 1")
    return tensor[0]


ADD_AXIS = Operation("add a first axis", _each(lambda t: t[None]), "drop the first axis", _each(_squeeze))
"""[tokens, width] <-> [1, tokens, width]."""

ADD_TWO_AXES = Operation(
    "add two first axes",
    _each(lambda tensor: tensor[None, None]),
    "drop two first axes",
    _each(lambda tensor: _squeeze(_squeeze(tensor))),
)
"""[width] <-> [1, 1, width]."""

TRANSPOSE = Operation("transpose", _each(lambda t: t.permute(1, 0)), "transpose", _each(lambda t: t.permute(1, 0)))
"""A linear weight [in, out] <-> [out, in]."""

KERNEL_HWIO = Operation(
    "permute a kernel from HWIO to OIHW",
    _each(lambda kernel: kernel.permute(3, 2, 0, 1)),
    "permute a kernel from OIHW to HWIO",
    _each(lambda kernel: kernel.permute(2, 3, 1, 0)),
)
"""A convolution's kernel in JAX [height, width, in, out] <-> in torch [out, in, height, width]."""


def _join(tensors: Sequence[Tensor]) -> list[Tensor]:
    import torch

    if len({tensor.shape for tensor in tensors}) > 1:
        raise ConversionError("the parts differ in shape")
    return [torch.cat(list(tensors))]


JOIN_QKV = Operation("join q, k, v", _join, "split into q, k, v", lambda tensors: tensors[0].chunk(3))
"""Three [width, ...] <-> one [3 * width, ...]."""

JOIN_TWO = Operation("join two", _join, "split into two", lambda tensors: tensors[0].chunk(2))
"""Two [width, ...] <-> one [2 * width, ...]."""


def _linear_of_heads(kernel: Tensor) -> Tensor:
    width, heads, head_width = kernel.shape
    return kernel.reshape(width, heads * head_width).permute(1, 0)


HEADS_TO_LINEAR = Operation("flatten heads into a linear weight", _each(_linear_of_heads))
"""JAX's kernel [in, heads, head width] -> [heads * head width, in]; the number of heads is lost."""

JOIN_HEADS = Operation("join kernels of separate heads", lambda t: _join([_linear_of_heads(k) for k in t]))
"""Two or three [in, heads, head width] -> one [2 or 3 * heads * head width, in]."""

JOIN_HEAD_BIASES = Operation("join biases of separate heads", lambda t: _join([_flat_bias(bias) for bias in t]))
"""One to three [heads, head width] -> one [1 to 3 * heads * head width]."""


def _flat_bias(bias: Tensor) -> Tensor:
    heads, head_width = bias.shape
    return bias.reshape(heads * head_width)


def _linear_from_heads(kernel: Tensor) -> Tensor:
    heads, head_width, width = kernel.shape
    return kernel.reshape(heads * head_width, width).permute(1, 0)


FLATTEN_HEADS = Operation("flatten heads", _each(_linear_from_heads))
"""An output kernel [heads, head width, out] -> [out, heads * head width]."""


def _absorb(tensors: Sequence[Tensor]) -> list[Tensor]:
    token, positions = tensors
    return [token + positions[:, :1], positions[:, 1:]]


ABSORB_POSITION = Operation("add the class token's position to the token", _absorb)
"""Class token [1, 1, width], positions [1, 1 + tokens, width] -> class token plus its position, other positions."""


def _with_zero_bias(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensors[0], tensors[0].new_zeros(len(tensors[0]))]


def _without_zero_bias(tensors: Sequence[Tensor]) -> list[Tensor]:
    if tensors[1].any():
        raise ConversionError("the bias is not zero, and the other layout has none")
    return [tensors[0]]


ADD_ZERO_BIAS = Operation("add a zero bias", _with_zero_bias, "drop a zero bias", _without_zero_bias)
"""A weight [out, in] <-> the weight and a zero bias [out]."""


def _split_q_kv(tensors: Sequence[Tensor]) -> list[Tensor]:
    third, rest = divmod(len(tensors[0]), 3)
    if rest:
        raise ConversionError("the first axis is not a multiple of three")
    return [tensors[0][:third], tensors[0][third:]]


def _join_q_kv(tensors: Sequence[Tensor]) -> list[Tensor]:
    import torch

    return [torch.cat(list(tensors))]


SPLIT_Q_KV = Operation("split into q and kv", _split_q_kv, "join q and kv", _join_q_kv)
"""One [3 * width, ...] <-> [width, ...] and [2 * width, ...]."""


@dataclass(frozen=True)
class Row:
    """A rename or operation between timm's keys and another layout's. Keys are templates."""

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
    """Keys to leave out, with the reason."""

    keys: str
    reason: str


def reason_to_drop(key: str, drops: Iterable[Drop]) -> str:
    """Return why a key is left out, or an empty string."""
    return next((drop.reason for drop in drops if match(drop.keys, key) is not None), "")


@dataclass(frozen=True)
class Refusal:
    """Keys of checkpoints that cannot be converted, with the reason."""

    keys: str
    reason: str


@dataclass(frozen=True)
class Naming:
    """How timm names a layout's plain ViTs (without a conv stem)."""

    pattern: str = "vit_{size}_patch{patch}_{img}"
    """Has ``{size}``, ``{patch}``, ``{img}`` and, if names include the activation, ``{act}``."""
    usual: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``Sizes`` in which models of this name differ from the first ViT."""
    gated_trunks: Mapping[tuple[int, int, int], str] = field(default_factory=dict)
    """(embed_dim, depth, num_heads) of trunks with a gated MLP -> word for ``{size}``."""
    base: str = "vit_base_patch16_224"
    """Model to build from, with arguments, if timm has no name for these sizes."""
    gated_base: str = ""
    """The same for a gated MLP, which timm has no argument for; empty if there is none."""


@dataclass(frozen=True)
class Layout:
    """How one library names and shapes the tensors of a ViT."""

    name: str
    title: str
    """The checkpoint's name in a sentence, such as "a MoCo v3 checkpoint"."""
    rows: tuple[Row, ...]
    """Tried in order; the first that matches a key applies."""
    markers: tuple[str, ...]
    """Keys that only this layout has."""
    stem: tuple[str, int] = ("", 0)
    """A key of every stem layer; its largest index plus this number is the count of layers before the last."""
    stem_stride: int | None = None
    """Stride of every stem layer, if equal in all models of the layout."""
    has: tuple[str, ...] = ()
    """timm keys that every model of the layout has, though not every ViT."""
    unless: tuple[str, ...] = ()
    """Keys of other layouts that have the same markers."""
    root: tuple[str, str] = ("", "")
    """Prefix of all keys in a model with a classifier, and the classifier's keys, which lack it."""
    heads: tuple[str, int] = ("", 0)
    """A key whose shape contains num_heads, and the axis."""
    head_width: int = 0
    """Channels per attention head, if equal in all models of the layout; else 0."""
    spellings: tuple[tuple[str, str], ...] = ()
    """(Key in files or older releases, key in ``rows``)."""
    drops: tuple[Drop, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    expresses: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Field of ``Sizes`` -> values that the layout's model class supports. Fields not listed are free."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """timm's arguments for every model of the layout that shapes do not show."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """The usual preprocessing, by field of timm's pretrained cfg; a checkpoint may override it."""
    fed_differently: bool = False
    """Whether some of the layout's models use other preprocessing."""
    assumed: Mapping[str, str] = field(default_factory=dict)
    """Entries of ``arguments`` that hold only for most models -> sentence that says so."""
    naming: Naming = Naming()

    @cached_property
    def invertible(self) -> bool:
        """Whether state dicts can also be converted to this layout."""
        return all(row.operation.inverse for row in self.rows)

    def stem_layers(self, keys: Iterable[str]) -> int:
        """Return the number of stem layers before the last, ``{n}``; 0 for a patchify ViT."""
        template, lacks = self.stem
        indices = [found["i"] for key in keys if template and (found := match(template, key)) is not None]
        return max(indices) + lacks if indices else 0

    def own_spelling(self, key: str) -> str:
        """Return a key in the spelling of ``rows``."""
        for other, own in self.spellings:
            values = match(other, key)
            if values is not None:
                return fill(own, values)
        return key


PLAIN_TRUNK: Mapping[str, tuple[Any, ...]] = {
    "rotary": (False,),
    "class_token": (True,),
    "class_position": (True,),
    "reg_tokens": (0,),
    "layer_scale": (False,),
    "qk_norm": (False,),
    "pre_norm": (False,),
    "fc_norm": (False,),
    "map_pool": (False,),
}
"""Values that the first ViT's trunk supports, for ``Layout.expresses``."""

USUAL_STEM: Mapping[str, tuple[Any, ...]] = {"last_kernel": (1,), "even_kernels": (False,)}
"""Stem convolutions that every library with a stem supports, for ``Layout.expresses``."""

IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
"""The usual normalisation, by field of timm's pretrained cfg."""

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
"""The normalisation to [-1, 1]."""
