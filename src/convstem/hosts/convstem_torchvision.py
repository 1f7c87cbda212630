"""What torchvision sees: one builder and one ``WeightsEnum`` per architecture. Never imports timm.

Annotations here are evaluated (no ``from __future__ import annotations``): torchvision finds a builder's weights by
the real object in its ``weights`` annotation.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torchvision.models import ViT_B_16_Weights, Weights, WeightsEnum
from torchvision.transforms import InterpolationMode

from convstem.errors import ArgumentError
from convstem.registry import catalog, tables
from convstem.registry.complexity import macs, num_params
from convstem.registry.records import ModelSpec, WeightsSpec
from convstem.upstream.private import torchvision_legacy_interface

HOME = "convstem.hosts"
"""The builders' ``__module__``: ``list_models(module=convstem)`` compares what is before its last dot."""

_IMAGENET = ViT_B_16_Weights.IMAGENET1K_V1
"""Weights of torchvision's own, from which the preset of transforms and ImageNet-1k's class names are taken."""

_SPELLING = {"vit": "ViT", "vitc": "ViTC", "convstem": "ConvStem", "nano": "Nano", "ti": "Ti"}


class ConvStemWeights(WeightsEnum):
    """Base of our weights enums: members load safetensors in timm's layout and return torchvision's."""

    def get_state_dict(self, progress: bool = True, check_hash: bool = False, stem: Any = None) -> dict[str, Any]:
        """Return the state dict in torchvision's layout.

        Args:
            progress: show a progress bar while downloading.
            check_hash: compare the file's sha256 with the registry's.
            stem: the ``StemSpec`` to transplant into; default: the architecture's own.
        """
        from convstem.layouts.conversion import convert
        from convstem.weights.entries import load_weights

        entry = catalog.weights()[self.meta["convstem"]]
        state = load_weights(entry, check_hash=check_hash, progress=progress, stem=stem)
        return convert(state, source="timm", target="torchvision").state_dict


def enum_name(torchvision_name: str) -> str:
    """Return the enum's name for a builder's, for example ``ViT_B_16_ConvStem_Weights`` for ``vit_b_16_convstem``."""
    parts = [_SPELLING.get(part, part.upper()) for part in torchvision_name.split("_")]
    return "_".join([*parts, "Weights"])


def make_enum(spec: ModelSpec) -> type[ConvStemWeights]:
    """Return the weights enum of an architecture: one upper-case member per tag, ``DEFAULT`` naming the first."""
    entries = [entry for entry in catalog.weights_of(spec.name) if entry.num_classes]  # torchvision's ViT has a head
    members = {entry.tag.upper().replace("-", "_"): make_weights(spec, entry) for entry in entries}
    if members:
        members["DEFAULT"] = next(iter(members.values()))
    name = enum_name(str(spec.torchvision))
    return ConvStemWeights(name, members, module=__name__)


def make_weights(spec: ModelSpec, entry: WeightsSpec) -> Weights:
    """Return torchvision's record of a weights entry, with the metadata its own tests ask for."""
    size = entry.input_size[1:]
    sized = catalog.sized(spec, entry.num_classes, entry.img_size) or spec
    params = num_params(sized)
    return Weights(
        url=(tables.data_dir("registry") / entry.file).as_uri() if entry.file else f"hf-hub:{entry.hf_hub_id}",
        transforms=partial(
            _IMAGENET.transforms,
            crop_size=size[0],
            resize_size=round(size[0] / entry.crop_pct),
            mean=entry.mean,
            std=entry.std,
            interpolation=InterpolationMode(entry.interpolation),
        ),
        meta={
            "categories": categories(entry),
            "min_size": size,
            "num_params": params,
            "recipe": entry.recipe,
            "license": entry.license,
            "convstem": entry.name,
            "_metrics": {entry.dataset: dict(entry.metrics)},
            "_ops": round(macs(sized) / 1e9, 3),
            "_file_size": round(4 * params / 1024**2, 3),  # float32
            "_docs": entry.description,
        },
    )


def categories(entry: WeightsSpec) -> Sequence[str | int]:
    """Return the class names of a weights entry: ImageNet-1k's come from torchvision, unnamed classes are numbers."""
    if entry.label_names:
        return list(entry.label_names)
    imagenet: Sequence[str] = _IMAGENET.meta["categories"]
    return imagenet if entry.num_classes == len(imagenet) else range(entry.num_classes)


def make_builder(spec: ModelSpec, enum: type[ConvStemWeights]) -> Callable[..., Any]:
    """Return the function torchvision registers: torchvision's own builder interface for one architecture."""

    def builder(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> Any:
        from convstem.models.torchvision_vit import create_torchvision_model  # heavy, so only when a model is built

        return create_torchvision_model(spec, verify(enum, weights), progress, **kwargs)

    builder.__name__ = builder.__qualname__ = str(spec.torchvision)
    builder.__module__ = HOME
    builder.__doc__ = f"{spec.torchvision}: conv-stem ViT, stem {list(spec.stem.channels)}. {spec.source}"
    builder.__annotations__["weights"] = enum | None
    legacy = torchvision_legacy_interface(weights=("pretrained", getattr(enum, "DEFAULT", None)))
    return legacy(builder)


def verify(enum: type[ConvStemWeights], weights: Any) -> ConvStemWeights | None:
    """Return the enum member meant by ``weights`` (a member, its name or None).

    Raises:
        ValueError: the enum has no such member; the message lists what it has.
        TypeError: another enum's member (torchvision's own check).
    """
    try:
        return enum.verify(weights)
    except KeyError:
        choices = ", ".join(sorted(enum.__members__)) or "none yet; pass weights=None for random initialisation"
        raise ArgumentError(f"{enum.__name__} has no weights {weights!r}; it has: {choices}") from None


def builders() -> tuple[dict[str, Callable[..., Any]], dict[str, type[ConvStemWeights]]]:
    """Create builders and enums as attributes of this module; return both by torchvision name."""
    module = sys.modules[__name__]
    functions, enums = {}, {}
    for spec in catalog.models().values():
        if spec.torchvision is None:
            continue
        enum = getattr(module, enum_name(spec.torchvision), None) or make_enum(spec)
        function = make_builder(spec, enum)
        setattr(module, enum.__name__, enum)
        setattr(module, spec.torchvision, function)
        functions[spec.torchvision], enums[spec.torchvision] = function, enum
    return functions, enums
