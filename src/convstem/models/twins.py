"""One model in both hosts: torchvision's class for a timm model, and the way back."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from convstem.errors import ArgumentError
from convstem.layouts.conversion import convert
from convstem.models.torchvision_vit import build
from convstem.registry import catalog
from convstem.weights.deferred import DeferredInit


def torchvision_twin(model: Any) -> VisionTransformer:
    """Return torchvision's class with the weights of one of our timm models, whose memory it shares.

    Raises:
        ValueError: torchvision's class cannot express the model.
    """
    state_dict = convert(model.state_dict(), source="timm", target="torchvision").state_dict
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
        twin = build(model.stem_spec, config)
        twin.load_state_dict(state_dict, assign=True)
    return twin


def as_timm_model(model: Any) -> Any:
    """Return a timm model with the weights of one of ours, which may be torchvision's ``VisionTransformer``.

    Raises:
        ValueError: a torchvision model without conv stem, or of sizes that no architecture of ours has.
    """
    from torchvision.models import VisionTransformer

    if not isinstance(model, VisionTransformer):
        return model
    import timm

    from convstem.stem.vocabulary import from_torchvision

    if not hasattr(model.conv_proj, "conv_last"):
        raise ArgumentError("this torchvision VisionTransformer has no conv stem; convstem.transplant gives it one")
    stem = from_torchvision(_stem_configs(model.conv_proj))
    block = model.encoder.layers[0]
    sizes = {
        "patch_size": model.patch_size,
        "embed_dim": model.hidden_dim,
        "depth": len(model.encoder.layers),
        "num_heads": block.num_heads,
        "mlp_ratio": model.mlp_dim / model.hidden_dim,
    }
    specs = [
        s for s in catalog.models().values() if s.torchvision and all(getattr(s, k) == v for k, v in sizes.items())
    ]
    if not specs:
        raise ArgumentError(f"no architecture of ours has the sizes of this torchvision model: {sizes}")
    spec = next((s for s in specs if s.stem == stem), specs[0])
    kwargs: dict[str, Any] = {} if spec.stem == stem else dict(stem.model_args)
    if model.image_size != spec.img_size:
        kwargs["img_size"] = model.image_size
    if block.ln_1.eps != 1e-6:
        kwargs["norm_eps"] = block.ln_1.eps
    twin = timm.create_model(spec.name, num_classes=model.heads.head.out_features, **kwargs)
    twin.load_state_dict(convert(model.state_dict(), source="torchvision", target="timm").state_dict)
    return twin


def _stem_configs(stem: Any) -> list[Any]:
    from torchvision.models.vision_transformer import ConvStemConfig

    layers = [(conv, type(norm[0]) if norm else None, type(act)) for conv, *norm, act in list(stem)[:-1]]
    return [ConvStemConfig(c.out_channels, c.kernel_size[0], c.stride[0], norm, act) for c, norm, act in layers]
