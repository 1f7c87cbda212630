"""Compares keys, shapes and number types of tensors, and words the differences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

_COUNTER = ".num_batches_tracked"  # optional: frozen norms lack it, BatchNorm restarts without it; any number type
_KINDS = {True: "floating-point numbers", False: "integers"}

Findings = Mapping[str, Collection[str]]
"""Kind of difference -> keys that have it."""


def differences(actual: Mapping[str, Any], expected: Mapping[str, Any], free: tuple[str, ...] = ()) -> str:
    """Return how tensors differ from the expected ones, one clause per kind of difference; empty if they match.

    Args:
        actual: a file's tensors or header entries, by key.
        expected: the model's.
        free: prefixes of keys that may differ.
    """
    ours, theirs = _compared(actual, expected, free), _compared(expected, actual, free)
    both = [key for key in ours.keys() & theirs.keys() if not key.endswith(_COUNTER)]
    kinds = {key: (_floating(ours[key]), _floating(theirs[key])) for key in both}
    findings = {
        **compare_shapes(_shapes(ours), _shapes(theirs)),
        "kinds of numbers differ": [
            f"{key} (file {_KINDS[file]}, model {_KINDS[model]})"
            for key, (file, model) in kinds.items()
            if file != model
        ],
    }
    return in_words(findings)


def compare_shapes(
    actual: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], named: Callable[[str], str] = str
) -> Findings:
    """Return the keys that are missing, surplus or misshapen, each renamed by ``named``."""
    both = {key: (list(actual[key]), list(expected[key])) for key in actual.keys() & expected.keys()}
    return {
        "the file lacks what the model needs": [named(key) for key in expected.keys() - actual.keys()],
        "the model has no place for": [named(key) for key in actual.keys() - expected.keys()],
        "shapes differ": [
            f"{named(key)} (file {file}, model {model})" for key, (file, model) in both.items() if file != model
        ],
    }


def in_words(findings: Findings) -> str:
    """Return one clause per kind of finding; empty if there are none."""
    return "; ".join(f"{text}: {some_of(keys)}" for text, keys in findings.items() if keys)


def some_of(keys: Collection[str]) -> str:
    """Return the first five sorted keys and the number of others."""
    return ", ".join(sorted(keys)[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _compared(tensors: Mapping[str, Any], others: Mapping[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
    """Return the tensors to compare: all except those that may differ and counters missing from ``others``."""
    return {
        key: tensor
        for key, tensor in tensors.items()
        if not key.startswith(free) and (key in others or not key.endswith(_COUNTER))
    }


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    return {key: tensor.shape for key, tensor in tensors.items()}


def _floating(tensor: Any) -> bool:
    """Return whether a tensor or header entry holds floating-point numbers."""
    return bool(tensor.floating if hasattr(tensor, "floating") else tensor.is_floating_point())
