"""Test parameters: the everyday tests take a few, CI takes all."""

from collections.abc import Collection, Sequence
from typing import Any

import pytest


def mostly_in_ci(values: Sequence[Any], everyday: Collection[Any]) -> list[Any]:
    """Mark all values for ``--full`` except the everyday ones.

    Args:
        values: values for ``parametrize``; a tuple is one set of parameters.
        everyday: some of the values, or of the sets' first elements.
    """
    return [value if _first(value) in everyday else _in_ci(value) for value in values]


def one_in(step: int, values: Sequence[Any]) -> list[Any]:
    """Mark all values for ``--full`` but the first and every ``step``-th behind it."""
    return [_in_ci(value) if index % step else value for index, value in enumerate(values)]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _in_ci(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full)
