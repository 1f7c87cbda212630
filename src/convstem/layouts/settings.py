"""What a training checkpoint says about its model besides the weights: the settings that scripts save with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def read_settings(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what a container says about the model besides its weights, and notes of what could not be read.

    Settings only spare the user an argument: those of a form that nobody expects are no reason to refuse the weights.

    Args:
        content: the container.

    Returns:
        timm's arguments, ``mean`` and ``std`` of the preprocessing, and ``architecture``, the model's name there.
    """
    facts: dict[str, Any] = {}
    notes: list[str] = []
    for key, read in _READERS.items():
        if content.get(key) is None:
            continue
        try:
            facts |= {name: value for name, value in read(content[key]).items() if value is not None}
        except Exception as error:  # anything can be there, and YAML has errors of its own
            notes.append(
                f"the checkpoint's {key!r} could not be read ({type(error).__name__}): nothing is taken from it"
            )
    return facts, notes


def _pycls_facts(text: Any) -> dict[str, Any]:
    import yaml

    config = yaml.safe_load(text) if isinstance(text, str) else {}
    vit = (config or {}).get("VIT", {})
    return {
        "num_heads": vit.get("NUM_HEADS"),
        "stem_strides": tuple(vit.get("C_STEM_STRIDES") or ())[:-1] or None,
        "norm_eps": (config or {}).get("LN", {}).get("EPS"),
    }


def _classy_facts(arguments: Any) -> dict[str, Any]:
    model = arguments.get("config", {}).get("model", {}) if isinstance(arguments, Mapping) else {}
    layers = model.get("conv_stem_layers") or []
    strides = tuple(layer["stride"] if isinstance(layer, Mapping) else layer[1] for layer in layers)
    return {"num_heads": model.get("num_heads"), "stem_strides": strides or None}


def _script_facts(arguments: Any) -> dict[str, Any]:
    """timm's train.py keeps the model's arguments in a Namespace; torchvision's keeps only the model's name."""
    values = arguments if isinstance(arguments, Mapping) else vars(arguments)
    given = values.get("model_kwargs") or {}
    names = ("num_heads", "stem_strides", "norm_eps", "img_size")
    preprocessing = {name: tuple(values[name]) for name in ("mean", "std") if values.get(name)}
    return {**{name: given.get(name) for name in names}, **preprocessing, "architecture": values.get("model")}


_READERS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "cfg": _pycls_facts,
    "input_args": _classy_facts,
    "args": _script_facts,
    "arch": lambda name: {"architecture": name if isinstance(name, str) else None},
}
