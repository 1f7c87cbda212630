"""What timm sees: one light entrypoint per architecture and ``default_cfgs``; the model code is imported on a call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from convstem.hosts.timm_tags import trunk_cfgs
from convstem.registry import catalog, tables
from convstem.registry.catalog import PYRAMID
from convstem.registry.records import ModelSpec, WeightsSpec
from convstem.registry.trunks import trunks
from convstem.stem.keys import FIRST_CONV

default_cfgs: dict[str, Any] = {}
"""timm looks this name up in an entrypoint's module."""


def make_entrypoint(spec: ModelSpec) -> Callable[..., Any]:
    """Return the function timm registers for an architecture: named after it and at home in this module."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        from convstem.models.timm_vit import create_timm_model  # heavy, so only when a model is built

        return create_timm_model(spec.name, pretrained, **kwargs)

    doc = f"{spec.name}: conv-stem ViT, stem {list(spec.stem.channels)}. {spec.source}"
    return _at_home(entrypoint, spec.name, doc)


def model_cfg(spec: ModelSpec) -> dict[str, Any]:
    """Return timm's pretrained cfg of an architecture without weights."""
    return {
        "num_classes": spec.num_classes,
        "input_size": (3, spec.img_size, spec.img_size),
        "fixed_input_size": True,
        "mean": spec.mean,
        "std": spec.std,
        "crop_pct": spec.crop_pct,
        "first_conv": FIRST_CONV,
        "classifier": "head",
        "paper_ids": "arXiv:2106.14881",
        "paper_name": "Early Convolutions Help Transformers See Better",
    }


def weights_cfg(entry: WeightsSpec) -> dict[str, Any]:
    """Return timm's pretrained cfg of a weights entry."""
    return {
        **model_cfg(catalog.models()[entry.architecture]),
        "file": str(tables.data_dir("registry") / entry.file) if entry.file else None,
        "hf_hub_id": entry.hf_hub_id,
        "num_classes": entry.num_classes,
        "input_size": entry.input_size,
        "mean": entry.mean,
        "std": entry.std,
        "interpolation": entry.interpolation,
        "crop_pct": entry.crop_pct,
        "label_names": entry.label_names or None,
        "license": entry.license,
        "description": entry.description or None,
    }


def make_trunk_entrypoint(name: str, trunk: str) -> Callable[..., Any]:
    """Return the function timm registers for a timm architecture on a conv stem."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        from convstem.models.timm_trunk import create_on_trunk  # heavy, so only when a model is built

        return create_on_trunk(name, trunk, pretrained, **kwargs)

    return _at_home(entrypoint, name, f"{name}: timm's {trunk} on a conv stem.")


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
    """Name a function as timm expects it and make it an attribute of this module."""
    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__, entrypoint.__doc__ = __name__, doc
    setattr(sys.modules[__name__], name, entrypoint)
    return entrypoint


def entrypoints() -> dict[str, Callable[..., Any]]:
    """Create the entrypoints and ``default_cfgs`` as attributes of this module; return the entrypoints by name."""
    from timm.models import generate_default_cfgs, is_model

    cfgs: dict[str, Any] = {}
    functions = {}
    for spec in catalog.models().values():
        entries = catalog.weights_of(spec.name)
        cfgs.update({entry.name: weights_cfg(entry) for entry in entries} or {spec.name: model_cfg(spec)})
        functions[spec.name] = make_entrypoint(spec)
    for name, trunk in trunks().items():
        if is_model(trunk):  # another timm release may lack some
            cfgs.update(trunk_cfgs(name, trunk))
            functions[name] = make_trunk_entrypoint(name, trunk)
    default_cfgs.update(generate_default_cfgs(cfgs))
    for name in [name for name in catalog.families() if name in functions]:
        functions[f"{name}{PYRAMID}"] = make_pyramid_entrypoint(name, functions[name])
        default_cfgs[f"{name}{PYRAMID}"] = default_cfgs[name]
    return functions
