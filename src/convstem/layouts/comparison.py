"""The one comparison of keys and shapes: what some tensors lack, have too much or have otherwise, in one wording."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_COUNTER = ".num_batches_tracked"  # a frozen norm has none, and BatchNorm starts anew without it
_KINDS = {True: "floating-point numbers", False: "integers"}


def differences(actual: Mapping[str, Any], expected: Mapping[str, Any], free: tuple[str, ...] = ()) -> str:
    """Return how some tensors differ from those expected: one clause for each kind of difference, empty if none.

    Args:
        actual: the tensors of a file, by key; anything with a shape, such as a tensor or an entry of a header.
        expected: those of the model.
        free: starts of keys that may differ.
    """
    ours, theirs = (
        {key: tensor for key, tensor in tensors.items() if not (free and key.startswith(free))}
        for tensors in (actual, expected)
    )
    both = sorted(ours.keys() & theirs.keys())
    shapes = {key: (list(ours[key].shape), list(theirs[key].shape)) for key in both}
    kinds = {key: (_floating(ours[key]), _floating(theirs[key])) for key in both}
    findings = {
        "the file lacks what the model needs": _but_counters(theirs.keys() - ours.keys()),
        "the file has what the model has no place for": _but_counters(ours.keys() - theirs.keys()),
        "shapes differ": [f"{key} (file {file}, model {model})" for key, (file, model) in shapes.items() if file != model],
        "kinds of numbers differ": [
            f"{key} (file {_KINDS[file]}, model {_KINDS[model]})" for key, (file, model) in kinds.items() if file != model
        ],
    }
    return "; ".join(f"{text}: {some_of(keys)}" for text, keys in findings.items() if keys)


def some_of(keys: Collection[str]) -> str:
    """Return the first five keys, sorted, and how many more there are."""
    return ", ".join(sorted(keys)[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _but_counters(keys: Collection[str]) -> list[str]:
    return [key for key in keys if not key.endswith(_COUNTER)]


def _floating(tensor: Any) -> bool:
    """Tell whether a tensor, or an entry of a file's header, holds floating-point numbers."""
    return bool(tensor.floating if hasattr(tensor, "floating") else tensor.is_floating_point())
