"""Twins: torchvision's class for one of our timm models, and back."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from convstem.errors import ArgumentError
from convstem.layouts.conversion import convert
from convstem.models.torchvision_vit import build
from convstem.registry import catalog
from convstem.registry.records import ModelSpec
from convstem.registry.stem_spec import StemSpec
from convstem.stem.vocabulary import from_torchvision
from convstem.weights.deferred import DeferredInit


def torchvision_twin(model: Any) -> VisionTransformer:
    """Return one of our timm models as torchvision's class; the two share memory.

    Raises:
        ArgumentError: torchvision's class would compute something else from these weights, or cannot hold them.
        ConversionError: the keys or shapes of the weights have no place in torchvision's class.
    """
    state_dict = convert(model.state_dict(), source="timm", target="torchvision").state_dict
    _check_computes_the_same(model)
    config = {
        "image_size": model.patch_embed.img_size[0],
        "patch_size": model.patch_embed.patch_size[0],
        "num_layers": len(model.blocks),
        "num_heads": model.blocks[0].attn.num_heads,
        "hidden_dim": model.embed_dim,
        "mlp_dim": model.blocks[0].mlp.fc1.out_features,
        "num_classes": model.num_classes,
        "norm_layer": partial(nn.LayerNorm, eps=model.blocks[0].norm1.eps),
    }
    with DeferredInit(), torch.device("meta"):
        twin = build(model.patch_embed.stem_spec, config)
        twin.load_state_dict(state_dict, assign=True)
    return twin


def _check_computes_the_same(model: Any) -> None:
    """Raise ``ArgumentError`` for what torchvision's class cannot express and a state dict's keys do not show."""
    block = model.blocks[0]
    act = block.mlp.act
    differs = {
        f"in_chans={model.patch_embed.in_chans}": model.patch_embed.in_chans != 3,
        f"num_classes={model.num_classes}": model.num_classes == 0,
        f"global_pool={model.global_pool!r}": model.global_pool != "token",
        f"blocks of kind {type(block).__name__}": type(block) is not Block,
        f"the activation {act}": type(act).__name__ != "GELU" or getattr(act, "approximate", "none") != "none",
    }
    found = [name for name, wrong in differs.items() if wrong]
    if found:
        raise ArgumentError(
            "torchvision's VisionTransformer has RGB images, a classifier on the class token, plain blocks and GELU; "
            f"this model has {', '.join(found)}: use it in timm"
        )


def as_timm_model(model: Any) -> Any:
    """Return one of our torchvision models as a timm model that shares its memory; other models as they are.

    Raises:
        ArgumentError: a torchvision model without a conv stem or classifier, or with sizes that no row has.
    """
    if not isinstance(model, VisionTransformer):
        return model
    head = getattr(model.heads, "head", None)
    if not isinstance(head, nn.Linear):
        raise ArgumentError(
            "a torchvision VisionTransformer has its classifier at heads.head, a torch.nn.Linear; this one has "
            f"{head or model.heads}: put the classifier there"
        )
    if not hasattr(model.conv_proj, "conv_last"):
        raise ArgumentError("this torchvision VisionTransformer has no conv stem; convstem.transplant gives it one")
    stem, in_chans = from_torchvision(_stem_configs(model.conv_proj)), model.conv_proj[0][0].in_channels
    spec = _row_for(model, stem)
    eps = model.encoder.layers[0].ln_1.eps
    kwargs: dict[str, Any] = {} if spec.stem_for(in_chans) == stem else dict(stem.model_args)
    kwargs |= {"in_chans": in_chans} if in_chans != 3 else {}
    kwargs |= {"stride": model.patch_size} if model.patch_size != spec.patch_size else {}
    kwargs |= {"img_size": model.image_size} if model.image_size != spec.img_size or "stride" in kwargs else {}
    kwargs |= {"norm_eps": eps} if eps != 1e-6 else {}
    with DeferredInit(), torch.device("meta"):
        twin = timm.create_model(spec.name, num_classes=head.out_features, **kwargs)
        state_dict = convert(model.state_dict(), source="torchvision", target="timm").state_dict
        twin.load_state_dict(state_dict, assign=True)
    return twin


def _row_for(model: Any, stem: StemSpec) -> ModelSpec:
    """Return the architecture with the sizes of a torchvision model, preferably with its stem too.

    If its patch size differs from the model's, the model is this architecture at another stride.
    """
    sizes = {
        "embed_dim": model.hidden_dim,
        "depth": len(model.encoder.layers),
        "num_heads": model.encoder.layers[0].num_heads,
        "mlp_ratio": model.mlp_dim / model.hidden_dim,
    }
    rows = [spec for spec in catalog.models().values() if spec.torchvision]
    rows = [spec for spec in rows if all(getattr(spec, name) == size for name, size in sizes.items())]
    rows.sort(key=lambda spec: abs(math.log2(spec.patch_size / model.patch_size)))  # stable: ties keep registry order
    if not rows:
        raise ArgumentError(f"no convstem architecture has the sizes of this torchvision model: {sizes}")
    return next((spec for spec in rows if spec.stem == stem), rows[0])


def _stem_configs(stem: Any) -> list[ConvStemConfig]:
    layers = [(conv, type(norm[0]) if norm else None, type(act)) for conv, *norm, act in list(stem)[:-1]]
    return [ConvStemConfig(c.out_channels, c.kernel_size[0], c.stride[0], norm, act) for c, norm, act in layers]
