"""The torchvision model: torchvision's own ``VisionTransformer`` with our stem as its ``conv_stem_configs``."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torchvision.models import WeightsEnum
from torchvision.models.vision_transformer import VisionTransformer

from convstem.errors import ArgumentError
from convstem.layouts.diagnosis import explain_on_load
from convstem.registry import catalog
from convstem.registry.stem_spec import StemSpec, check_arguments, check_heads, check_img_size, check_stem_patch
from convstem.stem.loading import torchvision_carrier
from convstem.stem.norms import fit_norm, init_stem, layer_norm
from convstem.stem.vocabulary import StemLike, as_stem_spec, own_stem, to_torchvision
from convstem.weights.deferred import DeferredInit
from convstem.weights.devices import check_cast, check_device, enough_memory, off_meta


def create_torchvision_model(
    name: str,
    weights: WeightsEnum | None,
    progress: bool = True,
    conv_stem_configs: StemLike | None = None,
    norm_eps: float | None = None,
    **kwargs: Any,
) -> VisionTransformer:
    """Build one of our architectures as torchvision's ``VisionTransformer``.

    Args:
        name: timm name of the architecture.
        weights: a member of its weights enum, or None for random initialisation.
        progress: show a progress bar while downloading.
        conv_stem_configs: another stem (list of ``ConvStemConfig``, ``StemSpec`` or architecture name).
        norm_eps: epsilon of the trunk's LayerNorms; default: torchvision's, 1e-6.
        kwargs: arguments of torchvision's ``VisionTransformer``.

    Raises:
        DeviceMemoryError: the default device has no room for the model.
        ArgumentError: the sizes do not fit together, or an argument contradicts the weights.
    """
    spec = catalog.models()[name]
    check_arguments(str(spec.torchvision), kwargs, inspect.signature(VisionTransformer).parameters)
    if weights is not None:
        _fit_to_weights(kwargs, weights)
    sizes = {
        "image_size": spec.img_size,
        "patch_size": spec.patch_size,
        "num_layers": spec.depth,
        "num_heads": spec.num_heads,
        "hidden_dim": spec.embed_dim,
        "mlp_dim": int(spec.embed_dim * spec.mlp_ratio),
        "num_classes": spec.num_classes,
        **kwargs,
    }
    if norm_eps is not None:
        sizes["norm_layer"] = layer_norm(nn.LayerNorm, norm_eps, kwargs.get("norm_layer"))
    check_sizes(sizes)
    own = own_stem(spec, sizes["patch_size"], sizes["hidden_dim"]) if conv_stem_configs is None else conv_stem_configs
    stem = as_stem_spec(own)
    check_stem_patch(stem, sizes["patch_size"])
    if weights is None:
        return build(stem, sizes)
    check_device(None)
    with off_meta({}), enough_memory():
        return _build_pretrained(stem, sizes, weights, progress)


def _build_pretrained(stem: StemSpec, sizes: dict[str, Any], weights: WeightsEnum, progress: bool) -> VisionTransformer:
    state_dict = weights.get_state_dict(progress=progress, check_hash=True, stem=stem)
    with DeferredInit(adopt=True):
        model = build(stem, sizes)
        model.load_state_dict(state_dict)
    check_cast(model)
    return model


def _fit_to_weights(kwargs: dict[str, Any], weights: WeightsEnum) -> None:
    """Set the head and image size to those of the weights; raise ``ArgumentError`` if the caller gives others."""
    fixed = {"num_classes": len(weights.meta["categories"]), "image_size": weights.meta["min_size"][0]}
    for name, value in fixed.items():
        if kwargs.setdefault(name, value) != value:
            raise ArgumentError(
                f"{name} is {value} in the weights {weights.name}; got {kwargs[name]}: leave it out, or pass "
                "weights=None for random initialisation"
            )


def build(stem: StemSpec, sizes: dict[str, Any]) -> VisionTransformer:
    """Return torchvision's ``VisionTransformer`` on a freshly initialised stem; it explains wrong checkpoints."""
    model = VisionTransformer(conv_stem_configs=to_torchvision(stem), **sizes)
    init_stem(model.conv_proj, stem.norm)
    model.conv_proj.register_load_state_dict_pre_hook(torchvision_carrier(stem, model.hidden_dim))
    model.conv_proj.register_load_state_dict_pre_hook(fit_norm)
    model.register_load_state_dict_pre_hook(explain_on_load("torchvision"))
    return model


def check_sizes(sizes: dict[str, Any]) -> None:
    """Raise ``ArgumentError`` for sizes on which torchvision fails with a bare assertion."""
    size, patch = sizes["image_size"], sizes["patch_size"]
    check_img_size((size, size), patch, "image_size", "dynamic_img_size=True to the timm model")
    check_heads(sizes["hidden_dim"], sizes["num_heads"])
