"""What timm sees: one light entrypoint per architecture and ``default_cfgs``; the model code is imported on a call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from convstem.hosts.timm_cfgs import model_cfg, trunk_cfgs, weights_cfg
from convstem.registry.names import PYRAMID, families, rows, trunks, weights_rows

default_cfgs: dict[str, Any] = {}
"""timm looks this name up in an entrypoint's module."""


def make_entrypoint(name: str, doc: str) -> Callable[..., Any]:
    """Return the function timm registers for an architecture: named after it and at home in this module."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        from convstem.models.timm_models import create_timm_model  # heavy, so only when a model is built

        return create_timm_model(name, pretrained, **kwargs)

    return _at_home(entrypoint, name, f"{name}: {doc}")


def make_pyramid_entrypoint(name: str, create: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of ``NAME_pyramid``: the same model, but ``features_only=True`` means the feature pyramid.

    For libraries that pass timm nothing but a name, such as segmentation_models_pytorch.
    """

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        if kwargs.get("features_only"):
            kwargs.setdefault("feature_cls", "pyramid")
        return create(pretrained, **kwargs)

    return _at_home(entrypoint, f"{name}{PYRAMID}", f"{name}, whose features_only=True is its feature pyramid.")


def _at_home(entrypoint: Callable[..., Any], name: str, doc: str) -> Callable[..., Any]:
    """Name a function as timm expects it and make it an attribute of this module, where pickle looks it up: once."""
    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__, entrypoint.__doc__ = __name__, doc
    return vars(sys.modules[__name__]).setdefault(name, entrypoint)


def entrypoints() -> dict[str, Callable[..., Any]]:
    """Create the entrypoints and ``default_cfgs`` as attributes of this module; return the entrypoints by name."""
    from timm.models import generate_default_cfgs, is_model

    cfgs: dict[str, Any] = {}
    functions = {}
    weights = weights_rows()
    for name, row in rows("architectures").items():
        tags = weights.get(name, {})
        cfgs.update({tag: weights_cfg(row, tags[tag]) for tag in tags} or {name: model_cfg(row)})
        functions[name] = make_entrypoint(name, f"conv-stem ViT. {row.get('source', '')}")
    for name, trunk in trunks().items():
        if is_model(trunk):  # another timm release may lack some
            cfgs.update(trunk_cfgs(name, trunk))
            functions[name] = make_entrypoint(name, f"timm's {trunk} on a conv stem.")
    default_cfgs.update(generate_default_cfgs(cfgs))
    for name in [name for name in families() if name in functions]:
        functions[f"{name}{PYRAMID}"] = make_pyramid_entrypoint(name, functions[name])
        default_cfgs[f"{name}{PYRAMID}"] = default_cfgs[name]
    return functions
