"""What lies beside the weights in a folder of transformers: which file they are, and what its configs say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convstem.errors import InvalidFileError, MissingPathError
from convstem.hub.config import read_json
from convstem.hub.limits import fits, short
from convstem.hub.source import CONFIG, WEIGHTS
from convstem.layouts.transformers import facts_of_config, layout_of_config

_NAMES = (WEIGHTS, "pytorch_model.bin")
"""What the weights are called in a folder of transformers or timm, the safe one first."""


def weights_in(source: Path) -> Path:
    """Return the weights file of a folder, or the file itself.

    Raises:
        MissingPathError: the folder has none.
    """
    if not source.is_dir():
        return source
    found = [source / name for name in _NAMES if (source / name).is_file()]
    if not found:
        raise MissingPathError(f"{source} has no {' and no '.join(_NAMES)}: give the path of a checkpoint")
    return found[0]


def facts_beside(path: Path) -> dict[str, Any]:
    """Return what the configs of transformers beside a weights file say that shapes do not, by timm's argument.

    Raises:
        InvalidFileError: a config is damaged.
    """
    facts: dict[str, Any] = {}
    config, preprocessing = path.with_name(CONFIG), path.with_name("preprocessor_config.json")
    if config.is_file():
        content = read_json(config)
        if layout_of_config(content):
            facts |= {**facts_of_config(content), "layout": layout_of_config(content)}
    if preprocessing.is_file():
        facts |= _mean_and_std(preprocessing)
    return facts


def _mean_and_std(preprocessing: Path) -> dict[str, tuple[float, ...]]:
    content = read_json(preprocessing)
    found = {name: content[f"image_{name}"] for name in ("mean", "std") if content.get(f"image_{name}")}
    for name, values in found.items():
        if not fits(values, list[float]):
            raise InvalidFileError(f"{preprocessing.name}: image_{name} must be a list of numbers; got {short(values)}")
    return {name: tuple(values) for name, values in found.items()}


def transformers_config(path: Path) -> dict[str, Any]:
    """Return transformers' ``config.json`` beside a weights file; empty if there is none, or another library's."""
    config = path.with_name(CONFIG)
    content = read_json(config) if config.is_file() else {}
    return content if content.get("architectures") else {}
