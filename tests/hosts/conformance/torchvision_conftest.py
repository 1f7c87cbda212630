"""Copied as ``conftest.py`` beside torchvision's own test files: points them at convstem's names, and only at those.

torchvision's tests ask ``list_models(torchvision.models)`` what to test while imported. Nothing in its files is
edited, and there is no ``import convstem`` here: the names must resolve by themselves.
"""

import os
from typing import Any

import pytest
from torchvision import models

HOME = "convstem.hosts"  # of the builders; the weights enums are in a module of it
NAMES = os.environ["CONVSTEM_SMALL_NAMES"].split()
assert all(models.get_model_builder(name).__module__ == HOME for name in NAMES)

real_list_models = models.list_models


def list_ours(module: Any = None, **kwargs: Any) -> list[str]:
    """Answer for ``torchvision.models`` with our names, for its other modules as usual."""
    return NAMES if module is models else real_list_models(module, **kwargs)


models.list_models = list_ours


def pytest_collection_modifyitems(config: Any, items: list[pytest.Item]) -> None:
    """Keep the tests that were given one of our builders, on the CPU."""
    ours = [item for item in items if _is_ours(getattr(item, "callspec", None))]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours


def _is_ours(callspec: Any) -> bool:
    parameters = list(callspec.params.values()) if callspec else []
    homes = [str(getattr(value, "__module__", "")) for value in parameters]
    return "cuda" not in parameters and any(home.startswith(HOME) for home in homes)
