"""Finds the patch embedding of a patchify ViT."""

from __future__ import annotations

from typing import Any

import torchvision
from timm.layers import PatchEmbed
from torch import nn

from convstem.errors import ArgumentTypeError, UnsupportedModelError
from convstem.stem.embed import ConvStemEmbed


def find_patch_embedding(model: nn.Module) -> tuple[str, Any]:
    """Return the path of the patch embedding and the module: a ``PatchEmbed``, or torchvision's convolution.

    Raises:
        ArgumentTypeError: it is no model.
        UnsupportedModelError: there is none, or none that can be transplanted; the message says what there is.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(
            f"transplant takes a patchify ViT or the name of one; got {type(model).__name__}: for a state dict, load "
            "it into the model it belongs to first"
        )
    if isinstance(model, torchvision.models.VisionTransformer):
        if isinstance(model.conv_proj, nn.Conv2d):
            return "conv_proj", model.conv_proj
        raise UnsupportedModelError("this torchvision model has a conv stem already; transplant takes patchify models")
    embeddings = [(name, module) for name, module in model.named_modules() if type(module) is PatchEmbed]
    if len(embeddings) == 1 and isinstance(embeddings[0][1].proj, nn.Conv2d):
        name, embedding = embeddings[0]
        if embedding.proj.kernel_size != embedding.proj.stride:
            raise UnsupportedModelError(
                f"the patch embedding of {type(model).__name__} overlaps: kernel {embedding.proj.kernel_size}, stride "
                f"{embedding.proj.stride}; transplant needs kernel = stride"
            )
        return name, embedding
    raise UnsupportedModelError(_no_patch_embedding(model))


def projection_of(embedding: Any) -> Any:
    """Return the convolution of what ``find_patch_embedding`` found."""
    return embedding.proj if isinstance(embedding, PatchEmbed) else embedding


def _no_patch_embedding(model: nn.Module) -> str:
    found = getattr(model, "patch_embed", None)
    if isinstance(found, ConvStemEmbed):
        return "this model has a conv stem already; transplant takes patchify models"
    kind = f"a {type(found).__name__}" if found is not None else "no patch_embed"
    return (
        f"{type(model).__name__} has {kind}; transplant takes models with one timm PatchEmbed whose kernel equals its "
        "stride (VisionTransformer, Eva, Beit, Cait, ConViT, DeiT, relpos, SAM, Swin), or torchvision's ViT"
    )
