"""Compares a converted model with the library that its checkpoint comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convstem.errors import CheckpointError
from convstem.layouts.conversion import Converted
from convstem.layouts.unwrap import unwrap
from convstem.publishing.neighbours import transformers_config
from convstem.registry.stem_spec import StemSpec

TOLERANCE = 1e-4
"""Largest relative difference of float32 outputs that counts as equal."""


@torch.no_grad()
def compare(
    content: Mapping[str, Any], path: Path, converted: Converted, model: nn.Module, use_ema: bool | None = None
) -> str:
    """Return the sentence that says how a converted model's outputs differ from the reference's, on random images.

    Args:
        content: the checkpoint.
        path: where it lies; a config of transformers beside it tells its class.
        converted: the converted state dict.
        model: the converted model.
        use_ema: which weights were taken.

    Raises:
        CheckpointError: they differ by more than ``TOLERANCE``.
    """
    library = "transformers" if converted.source.startswith("transformers") else converted.source
    reference = _REFERENCES.get(library)
    if reference is None:
        return f"not compared: no library that could be installed has the model of the layout {converted.source}"
    if library == "transformers" and not transformers_config(path):
        return "not compared: there is no config.json of transformers beside the weights"
    size = model.pretrained_cfg["input_size"]  # type: ignore[index]
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    state = unwrap(content, use_ema).state_dict
    expected = reference(state, path, converted, model, images)
    actual = model.float()(images)
    difference = float((actual - expected).norm() / (expected.norm() or 1))  # torchvision's fresh head gives zeros
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"the converted model differs from {library}'s by {difference:.1e} (relative, random images), more than "
            f"{TOLERANCE:.0e}; nothing was written"
        )
    return f"equal to {library}'s outputs within {difference:.1e} (relative, random images, float32)"


def _torchvision(state: Mapping[str, Tensor], path: Path, converted: Converted, model: Any, images: Tensor) -> Tensor:
    from torchvision.models.vision_transformer import VisionTransformer

    from convstem.stem.vocabulary import to_torchvision

    stem: StemSpec | None = getattr(model.patch_embed, "stem_spec", None)
    sizes = converted.sizes
    twin = VisionTransformer(
        image_size=images.shape[-1],
        patch_size=stem.patch_size if stem else sizes.patch_size,
        num_layers=sizes.depth,
        num_heads=model.blocks[0].attn.num_heads,
        hidden_dim=sizes.embed_dim,
        mlp_dim=sizes.mlp,
        num_classes=sizes.num_classes,
        conv_stem_configs=to_torchvision(stem) if stem else None,
    )
    twin.load_state_dict(dict(state))
    output: Tensor = twin.float().eval()(images)
    return output


def _transformers(state: Mapping[str, Tensor], path: Path, converted: Converted, model: Any, images: Tensor) -> Tensor:
    import transformers

    name = transformers_config(path)["architectures"][0]
    twin = getattr(transformers, name).from_pretrained(path.parent).float().eval()
    outputs = twin.vision_model(images) if hasattr(twin, "text_model") else twin(images)
    for field in ("logits", "image_embeds"):
        if getattr(outputs, field, None) is not None:
            return getattr(outputs, field)
    if converted.source == "transformers_vit":
        return outputs.last_hidden_state[:, 0]  # the pooler was left out
    return outputs.pooler_output


_REFERENCES: Mapping[str, Callable[..., Tensor]] = {"torchvision": _torchvision, "transformers": _transformers}
