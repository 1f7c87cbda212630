"""Copied as ``conftest.py`` beside timm's own test files: points them at convstem's names, and only at those.

timm's ``test_models.py`` asks ``timm.list_models`` what to test while it is imported, selecting by name pattern and by
module name; both would skip a plugin silently. The wrapper below answers for our names instead. Nothing in timm's
file is edited. No ``import convstem`` here: the names must resolve by themselves.
"""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import timm

# NAME_pyramid is NAME but for features_only=True, which tests/features covers; names made by rule are timm's own models
# but for the stem, and there are five times as many as all others.
ALL = timm.list_models(module="convstem_timm", exclude_filters="*_pyramid")
ALL = [name for name in ALL if not (name.endswith("_convstem") and timm.is_model(name.removesuffix("_convstem")))]
SMALL = os.environ["CONVSTEM_SMALL_NAMES"].split()
assert ALL and set(SMALL) <= set(ALL), "convstem's names are not registered in this process"

real_list_models = timm.list_models


def list_ours(filter: str = "", module: str = "", exclude_filters: str = "", **kwargs: Any) -> list[str]:
    """Answer as timm would if its filters knew our names: as ViTs with ``forward_intermediates``."""
    if filter and isinstance(filter, str):  # one family of timm's own
        return real_list_models(filter, module, exclude_filters=exclude_filters, **kwargs)
    if "vit_*" in exclude_filters:  # NON_STD_FILTERS: convolutional models only
        return []
    names = SMALL
    if "vit_*" in filter:  # the same list asked for: these tests run on the meta device, so all names can, once each
        names, kwargs = ALL, {}
    if kwargs.get("pretrained"):  # offline, only the embedded weights can be loaded
        names = ["vit_nano4_convstem"]
    return real_list_models(filter=names, **kwargs)


timm.list_models = list_ours


def pytest_collection_modifyitems(config: Any, items: list[pytest.Item]) -> None:
    """Drop timm's tests of fixed models of its own; keep those that were given our names."""
    ours = [item for item in items if _model_name(item).split(".")[0] in ALL]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours


def _model_name(item: pytest.Item) -> str:
    callspec: Any = getattr(item, "callspec", None)
    return str(callspec.params.get("model_name", "")) if callspec else ""


@pytest.fixture(autouse=True)
def quiet_deprecations() -> Iterator[None]:
    """TorchScript is deprecated in torch; timm tests it all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
