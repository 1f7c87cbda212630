"""The pretrained cfgs that timm gets with our names: from the registry's rows, and from timm's cfgs of the trunks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from convstem.registry.names import FIRST_CONV, FIRST_IN_EMBED, RESIZED, resized_from, resized_input, rows, without_size
from convstem.registry.tables import data_dir, freeze
from convstem.upstream.private import timm_cfgs

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
    """Return timm's pretrained cfg of an architecture without weights; where its row is silent timm's defaults hold."""
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

    A name of ``registry/trunks.json`` has those of the trunk's other image sizes too, their tags with a suffix.
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
        patch: its patch size, if that is resized: then images are larger by as much.
    """
    copy = object.__new__(type(cfg))  # every import of timm pays for some hundred of them
    vars(copy).update(vars(cfg), first_conv=f"{str(cfg.first_conv).removesuffix('.proj')}.{FIRST_IN_EMBED}")
    if patch:
        copy.input_size = resized_input(cfg.input_size, patch, RESIZED)
        copy.test_input_size = cfg.test_input_size and resized_input(cfg.test_input_size, patch, RESIZED)
    return copy


def other_sizes(name: str, trunk: str) -> list[str]:
    """Return the timm architectures whose tags an architecture of ``registry/trunks.json`` has besides its trunk's."""
    row = rows("trunks").get(name)
    if row is None or without_size(trunk) == trunk:
        return []
    return [other for other in _sizes()[without_size(trunk)] if other not in (trunk, *row.get("unlike", ()))]


@cache
def _sizes() -> Mapping[str, list[str]]:
    """Group the trunks that are named after their image size by what comes before it."""
    groups: dict[str, list[str]] = {}
    for name in rows("timm_trunks"):
        if without_size(name) != name:
            groups.setdefault(without_size(name), []).append(name)
    return groups
