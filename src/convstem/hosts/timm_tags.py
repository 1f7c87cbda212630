"""The pretrained tags of every architecture: the registry's, and those taken over from timm on other timm trunks.

timm is imported only where tags of its are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from convstem.errors import UnknownModelError
from convstem.registry import catalog
from convstem.registry.records import TrunkSpec, WeightsSpec
from convstem.registry.trunks import RESIZED, kept, named_tables, resized_from, resized_input, without_size
from convstem.upstream.private import timm_architectures, timm_cfgs

# What a tag was trained on last, by how it ends; the first match counts.
_DATASETS = (("in1k", "ImageNet-1k"), ("in21k", "ImageNet-21k"), ("dino", "ImageNet-1k"), ("mae", "ImageNet-1k"))


def weights_of(architecture: str) -> list[WeightsSpec]:
    """Return the weights entries of any architecture of ours, its default first."""
    if architecture in catalog.models():
        return catalog.weights_of(architecture)
    from timm.models import get_arch_pretrained_cfgs

    cfgs = get_arch_pretrained_cfgs(architecture).items()
    return [trunk_entry(name, cfg) for name, cfg in cfgs if cfg.hf_hub_id and cfg.tag]


def find_weights(name: str) -> WeightsSpec:
    """Return the weights entry of a name with tag, or the default one of a name without.

    Raises:
        UnknownModelError: no such name, or no such tag of it; the message lists the nearest names or the tags.
    """
    architecture, tag = catalog.find(name).name, name.partition(".")[2]
    entries = weights_of(architecture)
    found = [entry for entry in entries if tag in ("", entry.tag)]
    if found:
        return found[0]
    has = ", ".join(sorted(entry.tag for entry in entries)) or "none"
    raise UnknownModelError(f"{architecture} has no pretrained tag{f' {tag!r}' if tag else ''}; it has {has}")


def trunk_entry(name: str, cfg: Any) -> WeightsSpec:
    """Return the weights entry of a timm pretrained cfg under our name with tag."""
    shared = ("num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "hf_hub_id")
    source = cfg.hf_hub_id.removeprefix("timm/")
    spec = catalog.find(name)
    patch = spec.resized_from if isinstance(spec, TrunkSpec) else None
    return WeightsSpec(
        name=name,
        license=cfg.license or "unknown",
        dataset=dataset_of(source.partition(".")[2]),
        transform="transplant",
        description=f"Transplanted from timm's {source}: {kept(patch)}, not trained further.",
        **{field: getattr(cfg, field) for field in shared},
    )


def dataset_of(tag: str) -> str:
    """Return what the weights of a timm tag were trained on last, or the tag where it does not say."""
    return next((dataset for end, dataset in _DATASETS if tag.endswith(end)), tag)


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
    vars(copy).update(vars(cfg), first_conv=f"{str(cfg.first_conv).removesuffix('.proj')}.backbone.0.conv")
    if patch:
        copy.input_size = resized_input(cfg.input_size, patch, RESIZED)
        copy.test_input_size = cfg.test_input_size and resized_input(cfg.test_input_size, patch, RESIZED)
    return copy


def other_sizes(name: str, trunk: str) -> list[str]:
    """Return the timm architectures whose tags an architecture of ``registry/trunks.json`` has besides its trunk's."""
    row = named_tables().get(name)
    if row is None or without_size(trunk) == trunk:
        return []
    return [other for other in _sizes()[without_size(trunk)] if other not in (trunk, *row.get("unlike", ()))]


@cache
def _sizes() -> Mapping[str, list[str]]:
    """Group timm's architectures that are named after their image size by what comes before it."""
    groups: dict[str, list[str]] = {}
    for name in timm_architectures():
        if without_size(name) != name:
            groups.setdefault(without_size(name), []).append(name)
    return groups
