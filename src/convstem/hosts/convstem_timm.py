"""What timm sees: ``default_cfgs`` and a light entrypoint per architecture, which imports model code when called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from convstem.registry.tables import (
    FIRST_CONV,
    FIRST_IN_EMBED,
    PYRAMID,
    RESIZED,
    data_dir,
    families,
    freeze,
    resized_from,
    resized_input,
    rows,
    trunks,
    weights_rows,
    without_size,
)
from convstem.upstream import timm_cfgs

_MODEL = {
    "crop_pct": 0.9,
    "fixed_input_size": True,
    "first_conv": FIRST_CONV,
    "classifier": "head",
    "paper_ids": "arXiv:2106.14881",
    "paper_name": "Early Convolutions Help Transformers See Better",
}

_MODEL_FIELDS = (
    *("num_classes", "mean", "std", "crop_pct", "crop_mode", "interpolation", "fixed_input_size"),
    *("paper_ids", "paper_name"),
)

_WEIGHTS_FIELDS = (
    *("hf_hub_id", "num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "label_names"),
    *("license", "description"),
)


def model_cfg(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's pretrained cfg of an architecture without weights; timm's defaults fill what its row leaves out."""
    size = row.get("img_size")
    sizes = {"input_size": (3, size, size)} if size else {}
    return {**_MODEL, **sizes, **_stated(row, _MODEL_FIELDS)}


def weights_cfg(model: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's pretrained cfg of a weights row; ``model`` is the row of its architecture."""
    file = {"file": str(data_dir("registry") / row["file"])} if "file" in row else {}
    return {**model_cfg(model), **file, **_stated(row, _WEIGHTS_FIELDS)}


def _stated(row: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: freeze(row[field]) for field in fields if field in row}


def trunk_cfgs(name: str, trunk: str) -> dict[str, Any]:
    """Return timm's pretrained cfgs of a trunk under our name, by ``name.tag``, in timm's order.

    A name of ``registry/trunks.json`` also gets the cfgs of the trunk's other image sizes; their tags get a suffix.
    """
    found = {}
    patch = resized_from(trunk)
    for source in (trunk, *other_sizes(name, trunk)):
        suffix = "" if source == trunk else source.removeprefix(without_size(trunk))
        for name_and_tag, cfg in timm_cfgs(source).items():
            tag = name_and_tag.partition(".")[2]
            ours = f"{name}.{tag}{suffix}" if tag else name
            found[ours] = _with_stem(cfg, patch)
    return found


def _with_stem(cfg: Any, patch: int | None) -> Any:
    """Return a copy of a pretrained cfg for a conv stem, in a quarter of the time of dataclasses.replace.

    Args:
        cfg: timm's.
        patch: patch size of the trunk if it is resized; the images grow in proportion.
    """
    copy = object.__new__(type(cfg))  # every import of timm makes some hundred copies
    vars(copy).update(vars(cfg), first_conv=f"{str(cfg.first_conv).removesuffix('.proj')}.{FIRST_IN_EMBED}")
    if patch:
        copy.input_size = resized_input(cfg.input_size, patch, RESIZED)
        copy.test_input_size = cfg.test_input_size and resized_input(cfg.test_input_size, patch, RESIZED)
    return copy


def other_sizes(name: str, trunk: str) -> list[str]:
    """Return the trunk's other image sizes in timm, which lend their tags to a name of ``registry/trunks.json``."""
    row = rows("trunks").get(name)
    if row is None or without_size(trunk) == trunk:
        return []
    return [other for other in _sizes()[without_size(trunk)] if other not in (trunk, *row.get("unlike", ()))]


@cache
def _sizes() -> Mapping[str, list[str]]:
    """Group the trunks with an image size in their name by the name without it."""
    groups: dict[str, list[str]] = {}
    for name in rows("timm_trunks"):
        if without_size(name) != name:
            groups.setdefault(without_size(name), []).append(name)
    return groups


default_cfgs: dict[str, Any] = {}
"""timm looks this name up in an entrypoint's module."""


def make_entrypoint(name: str, doc: str) -> Callable[..., Any]:
    """Return the function timm registers for an architecture: it has its name and lives in this module."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        from convstem.models.timm_models import create_timm_model  # heavy, so only when a model is built

        return create_timm_model(name, pretrained, **kwargs)

    return _at_home(entrypoint, name, f"{name}: {doc}")


def make_pyramid_entrypoint(name: str, create: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of ``NAME_pyramid``: the same model, but ``features_only=True`` means the feature pyramid.

    For libraries that pass timm only a name, such as segmentation_models_pytorch.
    """

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        if kwargs.get("features_only"):
            kwargs.setdefault("feature_cls", "pyramid")
        return create(pretrained, **kwargs)

    return _at_home(entrypoint, f"{name}{PYRAMID}", f"{name}, whose features_only=True is its feature pyramid.")


def _at_home(entrypoint: Callable[..., Any], name: str, doc: str) -> Callable[..., Any]:
    """Name a function as timm expects and make it, once, an attribute of this module, where pickle looks it up."""
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
        if is_model(trunk):  # other timm releases may lack it
            cfgs.update(trunk_cfgs(name, trunk))
            functions[name] = make_entrypoint(name, f"timm's {trunk} on a conv stem.")
    default_cfgs.update(generate_default_cfgs(cfgs))
    for name in [name for name in families() if name in functions]:
        functions[f"{name}{PYRAMID}"] = make_pyramid_entrypoint(name, functions[name])
        default_cfgs[f"{name}{PYRAMID}"] = default_cfgs[name]
    return functions
