"""Changes a plain ViT's patch size (14 becomes 16) or its stride, the pixels from token to token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from timm.layers import (
    PatchEmbed,
    RelPosBias,
    RelPosMlp,
    RotaryEmbeddingDinoV3,
    resample_abs_pos_embed,
    resample_patch_embed,
)
from torch import Tensor, nn

from convstem.errors import ArgumentError, UnsupportedModelError
from convstem.registry.tables import RESIZED, resized_input
from convstem.transplanting.patch_embedding import find_patch_embedding, projection_of
from convstem.upstream import timm_set_metadata

USUAL_ODD = 14
"""Patch size, of DINOv2 and others, that becomes ``RESIZED`` by default."""


def needs_resizing(patch_size: int) -> bool:
    """Return whether stride-2 layers cannot make this patch size."""
    return patch_size & (patch_size - 1) != 0


def resize_patch(model: Any, target: int | None = None) -> int | None:
    """Resize the patches of a model to ``target`` pixels, in place, unless its patch size is a power of two.

    The number of patches stays the same.

    Args:
        model: a patchify ViT of timm or torchvision.
        target: pixels per patch of the stem; default: 16 for patches of 14.

    Returns:
        The old patch size, or None if nothing was done because it is ``target`` or a power of two.

    Raises:
        ArgumentError: no ``target`` for a patch size other than 14.
        UnsupportedModelError: the model cannot change its patch size.
    """
    embedding = find_patch_embedding(model)[1]
    patch = projection_of(embedding).kernel_size[0]
    if patch == target or not needs_resizing(patch):
        return None
    if target is None and patch != USUAL_ODD:
        raise ArgumentError(
            f"layers of stride 2 make patches of 2, 4, 8, 16 or 32 pixels, but this model has patches of {patch}; only "
            f"patches of {USUAL_ODD} become {RESIZED} by default. Pass a stem: strides that multiply to {patch} keep "
            f"the patches; a name, such as stem='vit_b16_convstem' (--to on the command line), makes them {RESIZED} "
            "pixels, and images larger to match"
        )
    target = target or RESIZED
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
    """Return images with each patch resized by itself, as the pseudo-inverse assumes; incomplete patches are cut off.

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
    """Resize with timm's own method, which leaves the position embedding alone because the grid is the same."""
    grid = embedding.grid_size
    model.set_input_size(img_size=grid and tuple(side * target for side in grid), patch_size=target)
    for info in getattr(model, "feature_info", None) or ():
        if info["reduction"] == patch:
            info["reduction"] = target
    if cfg := getattr(model, "pretrained_cfg", None):
        model.pretrained_cfg = model.default_cfg = resized_images(cfg, patch, target)


def resized_images(cfg: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    """Return a pretrained cfg with image sizes for as many patches of ``new`` pixels as there were of ``old``."""
    sizes = {key: cfg[key] for key in ("input_size", "test_input_size") if cfg.get(key)}
    return {**cfg, **{key: resized_input(size, old, new) for key, size in sizes.items()}}


def _resize_torchvision(model: Any, patch: int, target: int) -> None:
    old = model.conv_proj
    weight = resample_patch_embed(old.weight.detach(), [target, target])
    new = nn.Conv2d(old.in_channels, old.out_channels, target, target, device=old.weight.device, dtype=old.weight.dtype)
    new.weight, new.bias = nn.Parameter(weight, requires_grad=old.weight.requires_grad), old.bias
    model.conv_proj, model.patch_size = new.train(old.training), target
    model.image_size = model.image_size // patch * target


def check_trunk(model: Any, patch_size: int, stride: int) -> None:
    """Refuse a trunk that cannot have the denser grid of a stride below the patch size.

    Raises:
        UnsupportedModelError: its positions cannot be resampled, or it has window attention; the message says which.
    """
    what = next(_tied_to_a_grid(model), None) if stride < patch_size else None
    if what:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot have more tokens than patches (stride={stride} for patches of {patch_size} "
            f"pixels): it has {what}; choose a stride of at least {patch_size}, or another trunk"
        )


def _tied_to_a_grid(model: Any) -> Iterator[str]:
    """Yield the reasons why a model's tokens would change meaning on a denser grid of the same image."""
    rope = getattr(model, "rope", None)
    relative = isinstance(rope, RotaryEmbeddingDinoV3) or getattr(rope, "ref_feat_shape", None)
    if any(type(module).__name__.startswith(("Swin", "VisionTransformerSAM")) for module in model.modules()):
        yield "window attention, with windows that count tokens"
    if rope is not None and not relative:
        yield "rotary positions that count tokens, without a reference grid to scale them to"
    if any(isinstance(module, (RelPosBias, RelPosMlp)) for module in model.modules()):
        yield "relative positions that count tokens"
    if "pos_embed" in dict(model.named_buffers()):
        yield "fixed positions that count tokens"
    if not isinstance(model, torchvision.models.VisionTransformer) and not hasattr(model, "set_input_size"):
        yield "positions that timm cannot resample (no set_input_size)"


def set_stride(model: Any, stride: int) -> None:
    """Give a patchify model's trunk the grid of a stride, in place; the patch embedding keeps its kernel.

    If patches overlap, the patch embedding then makes fewer tokens than the grid has, because it does not pad.

    Args:
        model: a patchify ViT of timm or torchvision, with square patches.
        stride: pixels from token to token: the patch size times or divided by a power of two.

    Raises:
        UnsupportedModelError: see ``check_trunk``.
    """
    embedding = find_patch_embedding(model)[1]
    projection = projection_of(embedding)
    patch = projection.kernel_size[0]
    check_trunk(model, patch, stride)
    if isinstance(model, torchvision.models.VisionTransformer):
        _set_torchvision(model, patch, stride)
    else:
        _set_timm(model, embedding, patch, stride)
    projection.stride = (stride, stride)


def _set_timm(model: Any, embedding: PatchEmbed, patch: int, stride: int) -> None:
    larger = max(stride // patch, 1)
    size = embedding.img_size and tuple(side * larger for side in embedding.img_size)
    projection, embedding.proj = embedding.proj, nn.Conv2d(1, 1, patch, patch)  # a dummy that timm resizes quickly
    if larger > 1:  # the same grid
        embedding.set_input_size(img_size=size, patch_size=stride)
        timm_set_metadata(model, {} if size is None else {"img_size": size}, img_size=size)
    else:
        model.set_input_size(img_size=size, patch_size=stride)
    embedding.proj = projection
    for info in getattr(model, "feature_info", None) or ():
        if isinstance(info, dict) and not info["reduction"] % patch:
            info["reduction"] = info["reduction"] * stride // patch
    if larger > 1 and (cfg := getattr(model, "pretrained_cfg", None)):
        model.pretrained_cfg = model.default_cfg = resized_images(cfg, 1, larger)


def _set_torchvision(model: Any, patch: int, stride: int) -> None:
    positions = model.encoder.pos_embedding
    model.image_size = model.image_size * max(stride // patch, 1)
    model.patch_size = stride
    side = model.image_size // stride
    if positions.shape[1] != side**2 + 1:
        resampled = resample_abs_pos_embed(positions.detach(), [side, side], num_prefix_tokens=1)
        model.encoder.pos_embedding = nn.Parameter(resampled, requires_grad=positions.requires_grad)
        model.seq_length = side**2 + 1


class Overlapping(nn.Module):
    """A plain patch embedding with overlapping patches, padded at the right and lower border to one token per stride.

    Args:
        projection: a convolution with a stride less than its kernel.
        beyond: value of each channel beyond the border, [in_chans]; default: zero.
    """

    fill: Tensor

    def __init__(self, projection: nn.Conv2d, beyond: Tensor | None = None) -> None:
        super().__init__()
        self.projection = projection
        fill = torch.zeros(projection.in_channels) if beyond is None else beyond
        self.register_buffer("fill", fill.to(projection.weight)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map images [batch, in_chans, height, width] to [batch, embed_dim, height / stride, width / stride]."""
        more = self.projection.kernel_size[0] - self.projection.stride[0]
        padded: Tensor = self.projection(F.pad(x - self.fill, (0, more, 0, more)) + self.fill)
        return padded


def as_plain(model: Any, stride: int, beyond: Tensor | None = None) -> Any:
    """Make a plain model compute, without a stem, what its transplant at a stride computes; for comparisons.

    Args:
        model: a patchify ViT of timm, changed in place and returned. It stays unchanged for a stride above the patch
            size; its images are then those of the transplant with squares of pixels averaged.
        stride: pixels from token to token.
        beyond: see ``Overlapping``.
    """
    embedding = find_patch_embedding(model)[1]
    if stride < embedding.proj.kernel_size[0]:
        set_stride(model, stride)
        embedding.proj = Overlapping(embedding.proj, beyond)
    return model
