"""From any layout into timm's, and the proof that what came out is one whole ViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convstem.errors import ConversionError
from convstem.layouts.engine import Translation, counterpart, stem_layers, translate
from convstem.layouts.recognise import LAYOUTS, recognise
from convstem.layouts.rows import Layout
from convstem.layouts.shapes import mismatches
from convstem.layouts.sizes import Sizes, measure
from convstem.layouts.templates import fill, match

if TYPE_CHECKING:
    from torch import Tensor


def to_timm(
    state_dict: Mapping[str, Tensor], layout: Layout, complete: bool = True
) -> tuple[Translation, dict[str, str]]:
    """Return a flat state dict in timm's layout, and the keys left out with their grounds.

    Args:
        state_dict: tensors by key.
        layout: their layout.
        complete: it is a whole model's, not a part of one.

    Raises:
        ConversionError: keys that the layout does not have, or lacks, or two that become one.
    """
    for refusal in layout.refusals:
        if any(match(refusal.keys, key) is not None for key in state_dict):
            raise ConversionError(f"this is {layout.title}, but {refusal.reason}")
    kept, dropped, spelled = _sort_out(state_dict, layout)
    translation = translate(kept, layout.rows, "timm", stem_layers(kept, layout))
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
    """Return the tensors under the layout's own spelling, the keys to drop, and which spelling was replaced."""
    kept: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for key, tensor in state_dict.items():
        ground = next((drop.ground for drop in layout.drops if match(drop.keys, key) is not None), None)
        if ground is not None:
            dropped[key] = ground
            continue
        own = own_spelling(key, layout)
        if own in kept:
            raise ConversionError(f"two keys of this state dict mean the same: {spelled.get(own, own)!r} and {key!r}")
        kept[own] = tensor
        spelled[own] = key
    return kept, dropped, spelled


def own_spelling(key: str, layout: Layout) -> str:
    """Return the key in the spelling of the layout's rows."""
    for other, own in layout.spellings:
        values = match(other, key)
        if values is not None:
            return fill(own, values)
    return key


def _unknown_sentence(unknown: list[str], state_dict: Mapping[str, Any], layout: Layout) -> str:
    some = ", ".join(sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
    found = recognise(state_dict)
    what = found.layout.title if found.layout not in (None, layout) else found.foreign
    hint = f"; this is {what}" if what else ""
    return f"{len(unknown)} of {len(state_dict)} keys are not in the layout {layout.name!r}: {some}{hint}"


def check_whole(inward: Translation, layout: Layout, square: bool) -> Sizes:
    """Return the sizes of a model in timm's layout.

    Args:
        inward: what ``to_timm`` returned.
        layout: where it comes from, for messages.
        square: its images are square.

    Raises:
        ConversionError: a key is missing or surplus, a shape is wrong, or two keys share a tensor.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in inward.state_dict.items()}
    try:
        sizes = measure(shapes)
    except ConversionError as error:
        raise ConversionError(f"{error} (timm's name of the key; the layout is {layout.name!r})") from None
    wrong = mismatches(shapes, sizes, square)
    if wrong:
        named = [f"{_named(key, inward, layout)}: {what}" for key, what in sorted(wrong.items())]
        more = f"; and {len(named) - 5} more" if len(named) > 5 else ""
        raise ConversionError(f"this state dict does not fit together: {'; '.join(named[:5])}{more}")
    _check_ties(inward)
    return sizes


def _named(key: str, inward: Translation, layout: Layout) -> str:
    """Return a timm key with the name that the source has for it."""
    if layout.name == "timm":
        return key
    if key in inward.sources:
        return f"{', '.join(inward.sources[key])} ({key} in timm)"
    own = counterpart(key, layout.rows, stem_layers(inward.state_dict, LAYOUTS["timm"]))
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
                "clone one of them if the values are meant"
            )
