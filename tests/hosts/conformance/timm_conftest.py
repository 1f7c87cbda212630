"""Copied as ``conftest.py`` beside timm's own tests, so that they run on convstem's names only.

On import, timm's ``test_models.py`` calls ``timm.list_models`` with name patterns and module names that would silently
skip a plugin. The wrapper below returns our names instead. timm's file is not edited. There is no ``import convstem``
here: the names must resolve by themselves.
"""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import timm

# Left out: NAME_pyramid, which differs from NAME only with features_only=True (see tests/features), and names made by
# rule, which are timm's own models except for the stem and five times as many as all others.
ALL = timm.list_models(module="convstem_timm", exclude_filters="*_pyramid")
ALL = [name for name in ALL if not (name.endswith("_convstem") and timm.is_model(name.removesuffix("_convstem")))]
SMALL = os.environ["CONVSTEM_SMALL_NAMES"].split()
assert ALL and set(SMALL) <= set(ALL), "convstem's names are not registered in this process"

real_list_models = timm.list_models


def list_ours(filter: str = "", module: str = "", exclude_filters: str = "", **kwargs: Any) -> list[str]:
    """List our names where timm's filters ask for ViTs with ``forward_intermediates``."""
    if filter and isinstance(filter, str):  # one of timm's own families
        return real_list_models(filter, module, exclude_filters=exclude_filters, **kwargs)
    if "vit_*" in exclude_filters:  # NON_STD_FILTERS: convolutional models only
        return []
    names = SMALL
    if "vit_*" in filter:  # NON_STD_FILTERS as the filter: these tests use the meta device, so take all names once
        names, kwargs = ALL, {}
    if kwargs.get("pretrained"):  # offline only the embedded weights load
        names = ["vit_nano4_convstem"]
    return real_list_models(filter=names, **kwargs)


timm.list_models = list_ours


def pytest_collection_modifyitems(config: Any, items: list[pytest.Item]) -> None:
    """Keep the tests that got our names; drop those of fixed timm models."""
    ours = [item for item in items if _model_name(item).split(".")[0] in ALL]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours


def _model_name(item: pytest.Item) -> str:
    callspec: Any = getattr(item, "callspec", None)
    return str(callspec.params.get("model_name", "")) if callspec else ""


@pytest.fixture(autouse=True)
def quiet_deprecations() -> Iterator[None]:
    """TorchScript is deprecated in torch, but timm still tests it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
