"""What exists, as plain data: the answers behind ``convstem list`` and ``convstem show``. No torch in this file."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict
from typing import Any

from convstem.registry import catalog
from convstem.registry.catalog import PYRAMID
from convstem.registry.complexity import macs, num_params
from convstem.registry.records import ModelSpec
from convstem.registry.trunks import named_trunks


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """Return timm names in registry order, like ``timm.list_models``; with tags if ``pretrained``.

    Args:
        filter: shell-style pattern, matched against the name without tag.
        pretrained: only models that have weights, one entry per tag. Those on other timm trunks have timm's tags:
            ``timm.list_models("*_convstem", pretrained=True)`` lists them as well.

    The names that end in ``_pyramid`` are listed for a filter with this word only.
    """
    names = list(catalog.weights()) if pretrained else [*catalog.models(), *named_trunks()]
    if PYRAMID in filter:
        names += [name.replace(base := name.split(".", 1)[0], base + PYRAMID, 1) for name in names]
    return [name for name in names if fnmatch.fnmatch(name.split(".", 1)[0], filter)]


def describe(name: str) -> dict[str, Any]:
    """Return everything the registry knows about one architecture, JSON-plain.

    Args:
        name: timm or torchvision name, with or without a tag.

    Raises:
        KeyError: unknown name; the message lists the nearest ones.
    """
    trunk = named_trunks().get(name.removesuffix(PYRAMID))
    if trunk is not None:
        return {"name": trunk.name, "trunk": trunk.trunk, "stem": "default_stem", "weights": "timm's tags"}
    spec = catalog.find(name)
    return {
        "name": spec.name,
        "torchvision": spec.torchvision,
        "trunk": spec.trunk,
        "embed_dim": spec.embed_dim,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": spec.mlp_ratio,
        "patch_size": spec.patch_size,
        "img_size": spec.img_size,
        "num_classes": spec.num_classes,
        **spec.stem.model_args,
        "stem_layer": spec.stem.layer_title,
        "pos_embed": spec.pos_embed,
        "num_params": num_params(spec),
        "macs": macs(spec),
        "source": spec.source,
        "weights": [_describe_weights(spec, tag) for tag in _tags(spec)],
        "elsewhere": [
            {**asdict(entry), "command": entry.command}
            for entry in catalog.elsewhere().values()
            if entry.architecture == spec.name
        ],
    }


def _tags(spec: ModelSpec) -> list[str]:
    return [entry.name for entry in catalog.weights_of(spec.name)]


def _describe_weights(spec: ModelSpec, name: str) -> dict[str, Any]:
    entry = catalog.weights()[name]
    return {
        "name": name,
        "license": entry.license,
        "dataset": entry.dataset,
        "metrics": dict(entry.metrics),
        "location": "embedded" if entry.file else entry.hf_hub_id,
        "transform": entry.transform,
        "num_classes": entry.num_classes,
        "input_size": list(entry.input_size),
    }
