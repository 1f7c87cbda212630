"""torchvision's record of a weights entry and its state dict; imported when one is read. Never imports timm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torchvision.models import ViT_B_16_Weights, Weights
from torchvision.transforms import InterpolationMode

from convstem.errors import CheckpointError, ConversionError
from convstem.layouts.conversion import convert
from convstem.registry import catalog, tables
from convstem.registry.records import WeightsSpec, macs, num_params
from convstem.weights.entries import load_weights

_IMAGENET = ViT_B_16_Weights.IMAGENET1K_V1
"""torchvision's own weights: the source of the transforms preset and of ImageNet-1k's class names."""

_DATASETS = {"ImageNet-1k": "ImageNet-1K"}
"""Our name of a data set -> torchvision's."""


def load_state_dict(name: str, progress: bool, check_hash: bool, stem: Any) -> dict[str, Any]:
    """Return a weights entry in torchvision's layout; arguments as ``ConvStemWeights.get_state_dict``.

    Raises:
        CheckpointError: the file is not of this architecture.
    """
    state = load_weights(catalog.weights()[name], check_hash=check_hash, progress=progress, stem=stem)
    try:
        return convert(state, source="timm", target="torchvision").state_dict
    except ConversionError as error:
        raise CheckpointError(f"the weights of {name} have wrong content: {error}") from error


def make_weights(name: str) -> Weights:
    """Return torchvision's record of a weights entry, with the metadata that torchvision's own tests require.

    One exception: weights for the classes of another data set have no ImageNet-1K figures. Unmeasured figures are left
    out.
    """
    entry = catalog.weights()[name]
    spec = catalog.models()[entry.architecture]
    sized = catalog.sized(spec, entry.num_classes, entry.img_size) or spec
    size = entry.input_size[1:]
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
            "num_params": num_params(sized),
            "recipe": entry.recipe,
            "license": entry.license,
            "_metrics": {_DATASETS.get(entry.dataset, entry.dataset): dict(entry.metrics or entry.source_metrics)},
            "_ops": round(macs(sized) / 1e9, 3),
            "_file_size": round(file_bytes(entry) / 1024**2, 3),  # in MB, as torchvision counts them
            "_docs": entry.description,
        },
    )


def file_bytes(entry: WeightsSpec) -> int:
    """Return the size of the weights file in bytes."""
    if entry.file:
        return (tables.data_dir("registry") / entry.file).stat().st_size
    assert entry.file_bytes, f"{entry.name}: python -m tools.timm_weights"
    return entry.file_bytes


def categories(entry: WeightsSpec) -> Sequence[str | int]:
    """Return the class names of a weights entry: ImageNet-1k's come from torchvision; unnamed classes are numbers."""
    if entry.label_names:
        return list(entry.label_names)
    imagenet: Sequence[str] = _IMAGENET.meta["categories"]
    return imagenet if entry.num_classes == len(imagenet) else range(entry.num_classes)
