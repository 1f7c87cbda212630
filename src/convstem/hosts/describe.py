"""What exists, as plain data: the answers behind ``convstem list`` and ``convstem show``, and every pretrained tag.

timm is imported only where pretrained tags are asked for that are timm's.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from convstem.errors import UnknownModelError
from convstem.registry import catalog
from convstem.registry.complexity import macs, num_params
from convstem.registry.licenses import admitted
from convstem.registry.names import what_is_kept
from convstem.registry.records import Architecture, ModelSpec, TrunkSpec, WeightsSpec
from convstem.registry.stem_spec import COARSEST, StemSpec, choice


def list_models(filter: str = "", pretrained: bool = False, license: str | None = None) -> list[str]:
    """Return timm names: our own families first, then named timm trunks, then the names made by rule.

    Args:
        filter: shell-style pattern of a timm or torchvision name, or a bare word that it holds, such as ``dinov3``;
            ``*`` is everything. Default: all but the names made by rule, ``<timm name>_convstem``.
        pretrained: only models that have weights, one entry per tag; the pattern may then match the tag as well.
        license: only pretrained tags under this licence, such as ``apache-2.0``; ``permissive`` are those that let
            everybody use, change and sell the weights.

    The names that end in ``_pyramid`` are listed for a filter with this word only.

    Raises:
        ArgumentError: no weights have this licence; the message lists those that some have.
    """
    if not pretrained and license is None:
        return catalog.matching(filter)
    if license is not None:
        choice("license", license, ["permissive", *_licenses()])
    pattern = catalog.as_pattern(filter)
    names = catalog.matching("*_pyramid" if "pyramid" in filter else "*" if filter else "")
    tags = {f"{name}.{entry.tag}": entry for name in names for entry in weights_of(catalog.find(name).name)}
    return [
        name
        for name, entry in tags.items()
        if any(fnmatch.fnmatch(name, p) for p in (pattern, f"{pattern}.*"))
        and (license is None or admitted(entry.license, license))
    ]


def _licenses() -> set[str]:
    """Return the licences of all pretrained tags."""
    return {entry.license for name in catalog.architectures() for entry in weights_of(name)}


def names_on_conv_stem(name: str) -> list[str]:
    """Return our names of a patchify model of timm, with its tag where they have it; none for any other name."""
    base, _, tag = name.partition(".")
    names = catalog.conv_stem_names(base)
    return [f"{ours}.{tag}" for ours in names for entry in weights_of(ours) if entry.tag == tag] or names


def describe(name: str) -> dict[str, Any]:
    """Return everything that is known about an architecture, JSON-plain.

    Args:
        name: timm or torchvision name; with a tag, head, image size and counts are those of the model with these
            weights, and the counts are None where the trunk was not measured at that size.

    Raises:
        UnknownModelError: unknown name or tag; the message lists the nearest names, or the tags.
    """
    spec = catalog.find(name)
    entries = [find_weights(name)] if "." in name else weights_of(spec.name)
    published = [entry for entry in catalog.elsewhere().values() if entry.architecture == spec.name]
    return {
        **_describe(spec, entries),
        "weights": [_describe_weights(entry) for entry in entries],
        "elsewhere": [{**asdict(entry), "command": entry.command} for entry in published],
    }


def summarise(name: str) -> dict[str, Any]:
    """Return the same without timm: ``weights`` is None where the tags are timm's.

    Raises:
        UnknownModelError: unknown name; the message lists the nearest ones.
    """
    spec = catalog.find(name)
    entries = catalog.weights_of(spec.name) if isinstance(spec, ModelSpec) else None
    weights = None if entries is None else [_describe_weights(entry) for entry in entries]
    return {**_describe(spec, entries or []), "weights": weights}


def _describe(spec: Architecture, entries: Sequence[WeightsSpec]) -> dict[str, Any]:
    """Return the architecture as it is built with its first weights."""
    built = catalog.sized(spec, entries[0].num_classes, entries[0].img_size) if entries else spec
    size = entries[0].img_size if entries else spec.img_size
    shared = ("name", "torchvision", "trunk", "embed_dim", "depth", "num_heads", "patch_size")
    return {
        **{field: getattr(spec, field) for field in shared},
        "mlp_ratio": getattr(spec, "mlp_ratio", None),  # of our own families only
        "pos_embed": getattr(spec, "pos_embed", None),
        "img_size": size if isinstance(size, int) else list(size),
        "num_classes": entries[0].num_classes if entries else spec.num_classes,
        **spec.stem.model_args,
        "pyramid": [{"stride": s, "channels": c} for s, c in spec.stem.levels(spec.embed_dim, COARSEST)],
        "num_params": built and num_params(built),
        "macs": built and macs(built),
        "source": spec.source,
    }


def _describe_weights(entry: WeightsSpec) -> dict[str, Any]:
    shared = ("name", "license", "dataset", "transform", "num_classes", "description", "interpolation", "crop_pct")
    return {
        **{field: getattr(entry, field) for field in shared},
        "metrics": dict(entry.metrics),
        "source_metrics": dict(entry.source_metrics),
        "source_metrics_from": entry.source_metrics_from,
        "location": "embedded" if entry.file else entry.hf_hub_id,
        "input_size": list(entry.input_size),
        "mean": list(entry.mean),
        "std": list(entry.std),
    }


STEM_COLUMNS = ("stem layer", "kernel", "stride", "channels", "feature map")


def stem_rows(stem: StemSpec, img_size: int | Sequence[int], embed_dim: int) -> list[list[str]]:
    """Return a stem as table rows below ``STEM_COLUMNS``, the last convolution included.

    Args:
        stem: the stem.
        img_size: in pixels, one number or height and width.
        embed_dim: width of the trunk.
    """
    titled = [(stem.layer_title, layer) for layer in stem.layers(img_size)]
    return [
        [title, f"{made.kernel_size}x{made.kernel_size}", *map(str, (made.stride, made.channels)), made.map_size]
        for title, made in [*titled, ("conv", stem.last_layer(embed_dim, img_size))]
    ]


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
