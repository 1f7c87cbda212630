"""The torchvision model: torchvision's own ``VisionTransformer`` with our stem as its ``conv_stem_configs``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models._utils import _ovewrite_named_param
from torchvision.models.vision_transformer import VisionTransformer

from convstem.checkpoints import explain_mismatch
from convstem.deferred import DeferredInit, off_meta
from convstem.layouts import convert
from convstem.specs import ModelSpec, StemSpec, check_heads, check_stem_patch
from convstem.stem import StemLike, as_stem_spec, init_stem, to_torchvision
from convstem.torchvision_models import ConvStemWeights


def create_torchvision_model(
    spec: ModelSpec,
    weights: ConvStemWeights | None,
    progress: bool = True,
    conv_stem_configs: StemLike | None = None,
    **kwargs: Any,
) -> VisionTransformer:
    """Build one of our architectures as torchvision's ``VisionTransformer``.

    Args:
        spec: the architecture.
        weights: a member of its weights enum, or None for random initialisation.
        progress: show a progress bar while downloading.
        conv_stem_configs: another stem (list of ``ConvStemConfig``, ``StemSpec`` or architecture name).
        kwargs: arguments of torchvision's ``VisionTransformer``.

    Raises:
        ValueError: sizes that do not fit together, or arguments that contradict the weights.
    """
    if weights is not None:
        _ovewrite_named_param(kwargs, "num_classes", len(weights.meta["categories"]))
        _ovewrite_named_param(kwargs, "image_size", weights.meta["min_size"][0])
    stem = spec.stem if conv_stem_configs is None else as_stem_spec(conv_stem_configs)
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
    check_sizes(sizes)
    check_stem_patch(stem, sizes["patch_size"])
    if weights is None:
        return _build(stem, sizes)
    with off_meta({}):
        state_dict = weights.get_state_dict(progress=progress, check_hash=True)
        with DeferredInit(adopt=True):
            model = _build(stem, sizes)
            model.load_state_dict(state_dict)
    return model


def _build(stem: StemSpec, sizes: dict[str, Any]) -> VisionTransformer:
    model = VisionTransformer(conv_stem_configs=to_torchvision(stem), **sizes)
    init_stem(model.conv_proj)
    model.register_load_state_dict_pre_hook(_explain_wrong_checkpoint)
    return model


def torchvision_twin(model: Any) -> VisionTransformer:
    """Return torchvision's class with the weights of one of our timm models, whose memory it shares.

    Raises:
        ValueError: torchvision's class cannot express the model.
    """
    state_dict = convert(model.state_dict(), source="timm", target="torchvision")
    config = {
        "image_size": model.patch_embed.img_size[0],
        "patch_size": model.patch_embed.patch_size[0],
        "num_layers": len(model.blocks),
        "num_heads": model.blocks[0].attn.num_heads,
        "hidden_dim": model.embed_dim,
        "mlp_dim": model.blocks[0].mlp.fc1.out_features,
        "num_classes": model.num_classes,
    }
    with DeferredInit(), torch.device("meta"):
        twin = _build(model.stem_spec, config)
        twin.load_state_dict(state_dict, assign=True)
    return twin


def check_sizes(sizes: dict[str, Any]) -> None:
    """Raise ``ValueError`` where torchvision would fail with a bare assertion."""
    size, patch = sizes["image_size"], sizes["patch_size"]
    if size < patch or size % patch:
        low, high = max(size // patch, 1) * patch, -(-size // patch) * patch
        raise ValueError(
            f"image_size must be a multiple of the patch size {patch}; got {size}: use {low} or {high} "
            "(for sizes that vary use the timm model with dynamic_img_size=True)"
        )
    check_heads(sizes["hidden_dim"], sizes["num_heads"])


def _explain_wrong_checkpoint(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
) -> None:
    own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    lists[-1].extend(explain_mismatch(own, module, "torchvision"))  # the last list is error_msgs
