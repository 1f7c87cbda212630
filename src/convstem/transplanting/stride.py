"""Gives a plain ViT another stride than its patch size: the trunk gets another grid, the patch embedding stays.

Below the patch size the grid is denser: learned positions are resampled by timm's rule, and the image size stays. Above
it the images are larger and the grid stays, so that nothing but the patch embedding changes.
"""

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
)
from torch import Tensor, nn

from convstem.errors import UnsupportedModelError
from convstem.transplanting.patch_embedding import find_patch_embedding, projection_of
from convstem.transplanting.patch_size import resized_images
from convstem.upstream.private import timm_set_metadata


def check_trunk(model: Any, patch_size: int, stride: int) -> None:
    """Refuse a trunk that cannot have the denser grid of a stride below the patch size.

    Raises:
        UnsupportedModelError: its positions cannot be resampled, or it attends in windows; the message says which.
    """
    what = next(_tied_to_a_grid(model), None) if stride < patch_size else None
    if what:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot have more tokens than patches (stride={stride} for patches of {patch_size} "
            f"pixels): it has {what}; choose a stride from {patch_size} on, or another trunk"
        )


def _tied_to_a_grid(model: Any) -> Iterator[str]:
    """Yield what makes a model's tokens mean something else on a denser grid of the same image."""
    rope = getattr(model, "rope", None)
    relative = isinstance(rope, RotaryEmbeddingDinoV3) or getattr(rope, "ref_feat_shape", None)
    if any(type(module).__name__.startswith(("Swin", "VisionTransformerSAM")) for module in model.modules()):
        yield "window attention, whose windows count tokens"
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

    As it is left, its patch embedding makes fewer tokens than the grid has where patches overlap, for it does not pad.

    Args:
        model: a patchify ViT of timm or torchvision, of square patches.
        stride: pixels from token to token, a power of two times or part of the patch size.

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
    projection, embedding.proj = embedding.proj, nn.Conv2d(1, 1, patch, patch)  # one that timm resizes in no time
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
    """A plain patch embedding whose patches overlap, padded at the right and lower border to a token for each stride.

    Args:
        projection: the convolution, whose stride is less than its kernel.
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
    """Make a plain model compute, without a stem, what its transplant of a stride computes; for comparisons.

    Args:
        model: a patchify ViT of timm, changed in place and returned. With a stride above the patch size it is left
            alone, and takes the images whose squares of pixels are averaged.
        stride: pixels from token to token.
        beyond: see ``Overlapping``.
    """
    embedding = find_patch_embedding(model)[1]
    if stride < embedding.proj.kernel_size[0]:
        set_stride(model, stride)
        embedding.proj = Overlapping(embedding.proj, beyond)
    return model
