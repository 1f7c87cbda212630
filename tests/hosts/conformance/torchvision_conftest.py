"""Copied as ``conftest.py`` beside torchvision's own tests: selects which tests run. Nothing is patched.

On import, the tests get their models from ``list_models(torchvision.models)``, which has our names.
There is no ``import convstem`` here: the names must resolve by themselves.
"""

import os
from typing import Any

import pytest
from torchvision import models

HOME = "torchvision.models.convstem"
NAMES = os.environ["CONVSTEM_SMALL_NAMES"].split()
assert set(NAMES) <= set(models.list_models(models)), "convstem's names are not registered in this process"

REGISTRY = (
    *("test_get_model_builder", "test_get_model_weights", "test_get_weight", "test_list_models"),
    *("test_list_models_filters", "test_naming_conventions", "test_weights_copyable", "test_weights_deserializable"),
)
"""Tests of the whole registry, including torchvision's own models; they are quick and need no network."""


def pytest_collection_modifyitems(config: Any, items: list[pytest.Item]) -> None:
    """Keep the registry's tests, and the CPU tests of our small builders."""
    chosen = [item for item in items if _name(item) in REGISTRY or _is_ours(getattr(item, "callspec", None))]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def _name(item: Any) -> str:
    return str(getattr(item, "originalname", ""))


def _is_ours(callspec: Any) -> bool:
    parameters = list(callspec.params.values()) if callspec else []
    builders = [value for value in parameters if getattr(value, "__module__", "") == HOME]
    return "cuda" not in parameters and any(builder.__name__ in NAMES for builder in builders)
