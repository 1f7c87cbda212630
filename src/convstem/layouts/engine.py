"""Converts a state dict into timm's layout, checks that it is one whole ViT, and converts it to the target layout.

These steps are ``to_timm``, ``check_whole`` and ``from_timm``. ``translate`` applies rows and knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from convstem.errors import ConversionError
from convstem.layouts.comparison import some_of
from convstem.layouts.recognise import recognise
from convstem.layouts.rows import Layout, Row, fill, match, reason_to_drop
from convstem.layouts.timm import TIMM, Sizes, contradictions, measure

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Translation:
    """A translated state dict and the origin of its keys."""

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """New key -> the keys it was made from."""
    unknown: list[str] = field(default_factory=list)


_OPPOSITE = {"timm": "other", "other": "timm"}


def translate(state_dict: Mapping[str, Tensor], rows: Sequence[Row], to: str, n: int) -> Translation:
    """Translate a state dict by rows; tensors are shared where the operation allows it.

    Args:
        state_dict: tensors by key.
        rows: the rows, in order.
        to: the side to translate to, ``timm`` or ``other``.
        n: number of stem layers before the last.

    Raises:
        ConversionError: two keys become one, a row's keys are incomplete, or an operation cannot take a shape.
    """
    side = _OPPOSITE[to]
    result = Translation()
    templates = _templates(tuple(rows), side)
    groups: dict[tuple[int, tuple[tuple[str, Any], ...]], dict[int, str]] = {}
    for key in state_dict:
        found = _find(key, templates, n)
        if found is None:
            result.unknown.append(key)
            continue
        row, position, values = found
        groups.setdefault((row, tuple(sorted(values.items()))), {})[position] = key
    for (row, holes), group in groups.items():
        _apply(state_dict, rows[row], to, n, dict(holes), group, result)
    return result


def _find(key: str, templates: Sequence[tuple[str, int, int, str]], n: int) -> tuple[int, int, dict[str, Any]] | None:
    for start, index, position, template in templates:
        if key.startswith(start):  # cheap test that avoids most regex matching
            values = match(template, key, n)
            if values is not None:
                return index, position, values
    return None


@cache
def _templates(rows: tuple[Row, ...], side: str) -> list[tuple[str, int, int, str]]:
    """Return (prefix, row, position, template) for every template of one side, in order."""
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
    wanted = row.sides[_OPPOSITE[to]]
    if len(group) < len(wanted):
        missing = [fill(wanted[k], values, n) for k in range(len(wanted)) if k not in group]
        raise ConversionError(f"{', '.join(sorted(group.values()))} came without {', '.join(missing)}")
    keys = tuple(group[k] for k in range(len(wanted)))
    step = row.operation
    change, name = (step.apply, step.name) if to == "timm" else (step.inverse, step.inverse_name)
    assert change is not None, "a layout whose rows have no inverse is not a target"
    try:
        tensors = change([state_dict[key] for key in keys])
    except (IndexError, RuntimeError, ValueError) as error:
        shapes = ", ".join(f"{key} {list(state_dict[key].shape)}" for key in keys)
        raise ConversionError(f"impossible shapes ({name}): {shapes}") from error
    for template, tensor in zip(row.sides[to], tensors, strict=True):
        new = fill(template, values, n)
        if new in result.state_dict:
            both = sorted({*result.sources[new], *keys})
            raise ConversionError(f"two keys of this state dict become {new!r}: {', '.join(both)}")
        result.state_dict[new] = tensor
        result.sources[new] = keys


def counterpart(key: str, rows: Sequence[Row], n: int) -> str:
    """Return the other layout's name for a timm key, or the key itself if it has no row."""
    found = _find(key, _templates(tuple(rows), "timm"), n)
    if found is None:
        return key
    index, _, values = found
    return ", ".join(fill(template, values, n) for template in rows[index].sides["other"])


def to_timm(
    state_dict: Mapping[str, Tensor], layout: Layout, complete: bool = True
) -> tuple[Translation, dict[str, str]]:
    """Return a flat state dict in timm's layout, and the keys left out with their reasons.

    Args:
        state_dict: tensors by key.
        layout: their layout.
        complete: the state dict is a whole model's.

    Raises:
        ConversionError: keys unknown to the layout, missing keys, or two keys that become one.
    """
    for refusal in layout.refusals:
        if any(match(refusal.keys, key) is not None for key in state_dict):
            raise ConversionError(f"this is {layout.title}, but {refusal.reason}")
    kept, dropped, spelled = _sort_out(state_dict, layout)
    translation = translate(kept, layout.rows, "timm", layout.stem_layers(kept))
    if translation.unknown:
        raise ConversionError(_unknown_sentence(translation.unknown, state_dict, layout))
    missing = [key for key in layout.has if key not in translation.state_dict]
    if missing and complete:
        named = ", ".join(counterpart(key, layout.rows, 0) for key in missing)
        raise ConversionError(f"this is {layout.title}, but it lacks {named}")
    translation.sources = {new: tuple(spelled.get(k, k) for k in old) for new, old in translation.sources.items()}
    return translation, dropped


def _sort_out(
    state_dict: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Return tensors by the layout's own spelling, dropped keys with reasons, and own spelling -> original key."""
    kept: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for key, tensor in state_dict.items():
        if reason := reason_to_drop(key, layout.drops):
            dropped[key] = reason
            continue
        own = layout.own_spelling(key)
        if own in kept:
            raise ConversionError(f"two keys of this state dict mean the same: {spelled.get(own, own)!r} and {key!r}")
        kept[own] = tensor
        spelled[own] = key
    return kept, dropped, spelled


def _unknown_sentence(unknown: list[str], state_dict: Mapping[str, Any], layout: Layout) -> str:
    found = recognise(state_dict)
    what = found.layout.title if found.layout not in (None, layout) else found.foreign
    hint = f"; this is {what}" if what else ""
    return f"{len(unknown)} of {len(state_dict)} keys are not in the layout {layout.name!r}: {some_of(unknown)}{hint}"


def check_whole(inward: Translation, layout: Layout, square: bool) -> Sizes:
    """Return the sizes of a model in timm's layout, after checking that its tensors fit together.

    Args:
        inward: what ``to_timm`` returned.
        layout: the original layout, for messages.
        square: images are square.

    Raises:
        ConversionError: a key is missing or surplus, a shape is wrong, or two keys share a tensor.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in inward.state_dict.items()}
    try:
        sizes = measure(shapes)
    except ConversionError as error:
        raise ConversionError(f"{error} (timm's name of the key; the layout is {layout.name!r})") from None
    wrong = contradictions(shapes, sizes, square, partial(_named, inward=inward, layout=layout))
    if wrong:
        raise ConversionError(f"this state dict does not fit together: {wrong}")
    _check_ties(inward)
    return sizes


def _named(key: str, inward: Translation, layout: Layout) -> str:
    """Return a timm key with the source's name for it."""
    if layout.name == "timm":
        return key
    if key in inward.sources:
        return f"{', '.join(inward.sources[key])} ({key} in timm)"
    own = counterpart(key, layout.rows, TIMM.stem_layers(inward.state_dict))
    return key if own == key else f"{own} ({key} in timm)"


def _check_ties(inward: Translation) -> None:
    owners: dict[tuple[int, int], str] = {}
    for key, tensor in inward.state_dict.items():
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        other = owners.setdefault((tensor.data_ptr(), tensor.numel()), key)
        if other != key:
            names = ", ".join(sorted({*inward.sources[other], *inward.sources[key]}))
            raise ConversionError(
                f"these keys share one tensor: {names}. No ViT ties its weights, and a file would not keep the tie; "
                "clone one of them if this is intended"
            )


LACKS = {
    "rotary": "its positions are rotary, and no norm follows its blocks",
    "class_token": "it has no class token",
    "class_position": "its class token has no position",
    "reg_tokens": "it has register tokens",
    "layer_scale": "it has LayerScale",
    "qk_norm": "it normalises queries and keys",
    "qkv_bias": "its qkv projection has no bias",
    "pre_norm": "it has a norm before the blocks",
    "fc_norm": "it has a norm after pooling",
    "map_pool": "it pools by attention",
    "gated_mlp": "its MLP is gated",
    "stem_norm": "its stem has another norm",
    "stem_bias": "the convolutions of its stem have no biases",
    "biased_norm": "the convolutions of its stem have biases before their norms",
    "last_kernel": "the last convolution of its stem is not a 1x1",
    "even_kernels": "its stem has even kernels, without padding",
    "num_classes": "it has a classifier",
}
"""Field of ``Sizes`` -> the feature that a target layout lacks (see ``Layout.expresses``)."""


def from_timm(inward: Translation, sizes: Sizes, target: Layout) -> Translation:
    """Translate a state dict from timm's layout to the target's.

    Raises:
        ConversionError: the target cannot express the model; the message says why.
    """
    for name, values in target.expresses.items():
        if getattr(sizes, name) not in values:
            raise ConversionError(f"{target.name} cannot express this model: {LACKS[name]}")
    translation = translate(inward.state_dict, target.rows, "other", TIMM.stem_layers(inward.state_dict))
    if translation.unknown:
        raise ConversionError(
            f"{target.name} cannot express this model: it has no place for {some_of(translation.unknown)}"
        )
    return _rooted(translation, target) if sizes.num_classes else translation


def _rooted(translation: Translation, target: Layout) -> Translation:
    prefix, classifier = target.root
    new = {key: key if match(classifier, key) is not None else prefix + key for key in translation.state_dict}
    return Translation(
        {new[key]: tensor for key, tensor in translation.state_dict.items()},
        {new[key]: sources for key, sources in translation.sources.items()},
    )
