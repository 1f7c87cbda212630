"""The pretrained tags of every architecture: the registry's, and those taken over from timm on other timm trunks.

timm is imported only where tags of its are asked for.
"""

from __future__ import annotations

from typing import Any

from convstem.errors import UnknownModelError
from convstem.registry import catalog
from convstem.registry.names import what_is_kept
from convstem.registry.records import TrunkSpec, WeightsSpec

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
    if not entries:
        raise UnknownModelError(
            f"{architecture} has no pretrained weights here: timm.create_model({architecture!r}) builds it at random, "
            "and `convstem convert FILE --out FOLDER` takes a checkpoint of its authors"
        )
    has = ", ".join(sorted(entry.tag for entry in entries))
    raise UnknownModelError(f"{architecture} has no pretrained tag {tag!r}; it has {has}")


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
        description=f"Transplanted from timm's {source}: {what_is_kept(patch)}, not trained further.",
        **{field: getattr(cfg, field) for field in shared},
    )


def dataset_of(tag: str) -> str:
    """Return what the weights of a timm tag were trained on last, or the tag where it does not say."""
    return next((dataset for end, dataset in _DATASETS if tag.endswith(end)), tag)
