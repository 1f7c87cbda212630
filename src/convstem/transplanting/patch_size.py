"""Brings a model of patch 14 to patch 16, which stride-2 layers can make: the same tokens, of a larger image.

The filters are resized by the pseudo-inverse of image resizing, so that a patch enlarged to 16 x 16 pixels gives what
the 14 x 14 patch gave, exactly. A photograph that is enlarged as a whole has other pixels at the patches' borders:
there the model is approximate.

Source: Beyer et al., "FlexiViT", arXiv 2212.08013, section 3.4; timm's ``resample_patch_embed``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from timm.layers import PatchEmbed, resample_patch_embed
from torch import Tensor, nn

from convstem.errors import UnsupportedModelError
from convstem.registry.names import RESIZED, resized_input
from convstem.transplanting.patch_embedding import find_patch_embedding, projection_of


def needs_resizing(patch_size: int) -> bool:
    """Return whether no stem of stride-2 layers has this patch size."""
    return patch_size & (patch_size - 1) != 0


def resize_patch(model: Any, target: int = RESIZED) -> int | None:
    """Give a model whose patch size is no power of two ``target`` pixels per patch and as many patches, in place.

    Args:
        model: a patchify ViT of timm or torchvision.
        target: pixels per patch that the stem makes.

    Returns:
        the patch size it had, or None if nothing was done: it has ``target``, or is a power of two.

    Raises:
        UnsupportedModelError: the model cannot change its patch size.
    """
    embedding = find_patch_embedding(model)[1]
    patch = projection_of(embedding).kernel_size[0]
    if patch == target or not needs_resizing(patch):
        return None
    if isinstance(model, torchvision.models.VisionTransformer):
        _resize_torchvision(model, patch, target)
    elif hasattr(model, "set_input_size"):
        _resize_timm(model, embedding, patch, target)
    else:
        raise UnsupportedModelError(
            f"{type(model).__name__} has patches of {patch} pixels and no set_input_size to make them {target}; pass a "
            f"stem whose strides multiply to {patch}, such as StemSpec((12, 588), strides=(2, 7), kernel_sizes=(3, 13))"
        )
    return int(patch)


def enlarge_patches(images: Tensor, patch: int, target: int = RESIZED) -> Tensor:
    """Return images whose every patch is resized by itself, as the pseudo-inverse assumes; what is left over is cut.

    Args:
        images: [batch, channels, height, width].
        patch: pixels of a patch.
        target: pixels of a patch in the result.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    images = images[:, :, : rows * patch, : columns * patch]
    patches = images.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).transpose(3, 4)
    basis = torch.eye(patch**2, dtype=images.dtype, device=images.device).view(-1, 1, patch, patch)
    matrix = F.interpolate(basis, size=(target, target), mode="bicubic", antialias=True).flatten(1)
    larger = (patches.flatten(4) @ matrix).unflatten(4, (target, target))
    return larger.transpose(3, 4).reshape(batch, channels, rows * target, columns * target)


def _resize_timm(model: Any, embedding: PatchEmbed, patch: int, target: int) -> None:
    """Resize with timm's own method; the position embedding is left alone because the grid is the same."""
    grid = embedding.grid_size
    model.set_input_size(img_size=grid and tuple(side * target for side in grid), patch_size=target)
    for info in getattr(model, "feature_info", None) or ():
        if info["reduction"] == patch:
            info["reduction"] = target
    if cfg := getattr(model, "pretrained_cfg", None):
        model.pretrained_cfg = model.default_cfg = resized_images(cfg, patch, target)


def resized_images(cfg: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    """Return a pretrained cfg for images of as many patches of ``new`` pixels as its own have of ``old``."""
    sizes = {key: cfg[key] for key in ("input_size", "test_input_size") if cfg.get(key)}
    return {**cfg, **{key: resized_input(size, old, new) for key, size in sizes.items()}}


def _resize_torchvision(model: Any, patch: int, target: int) -> None:
    old = model.conv_proj
    weight = resample_patch_embed(old.weight.detach(), [target, target])
    new = nn.Conv2d(old.in_channels, old.out_channels, target, target, device=old.weight.device, dtype=old.weight.dtype)
    new.weight, new.bias = nn.Parameter(weight, requires_grad=old.weight.requires_grad), old.bias
    model.conv_proj, model.patch_size = new.train(old.training), target
    model.image_size = model.image_size // patch * target
