"""The trunks of both hosts, entered behind the stem, with the interface of timm's models."""

import copy
from collections import OrderedDict
from itertools import chain
from typing import Any

import torch
from timm.layers import Format, HybridEmbed, PatchEmbed, nchw_to, resample_abs_pos_embed
from timm.models import checkpoint
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from convstem.errors import UnsupportedModelError
from convstem.stem.embed import ConvStemEmbed

is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]  # TorchScript cannot read this comment in a method


class MapEmbed(nn.Module):
    """A timm model's patch embedding for the output of its stem: a position of the map is a token.

    Args:
        embed: the patch embedding, ours or timm's, whose sizes, output format and norm stay.
    """

    output_fmt: Format  # for TorchScript, which takes it for a string otherwise

    def __init__(self, embed: HybridEmbed) -> None:
        super().__init__()
        self.img_size, self.grid_size, self.num_patches = embed.img_size, embed.grid_size, embed.num_patches
        self.strict_img_size, self.patch_size = embed.strict_img_size, embed.feat_ratio(as_scalar=False)
        self.flatten, self.output_fmt = embed.flatten, Format(embed.output_fmt)
        self.norm = getattr(embed, "norm", nn.Identity())  # timm's own has none

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Return the positions per token: one number, or [rows, columns]."""
        return 1 if as_scalar else (1, 1)

    def dynamic_feat_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid [rows, columns] of a map of this size, which is the same."""
        return size

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, embed_dim, rows, columns] to tokens [batch, tokens, embed_dim] (or ``output_fmt``)."""
        if self.strict_img_size and self.grid_size is not None:
            torch._assert(
                x.shape[2] == self.grid_size[0] and x.shape[3] == self.grid_size[1],
                f"this model takes images of {self.img_size[0]}x{self.img_size[1]} pixels only; got about "
                f"{x.shape[2] * self.patch_size[0]}x{x.shape[3] * self.patch_size[1]}: create it with this img_size, "
                "or with dynamic_img_size=True if its positions can be interpolated",
            )
        if self.flatten:
            x = x.flatten(2).transpose(1, 2)
        elif self.output_fmt != Format.NCHW:
            x = nchw_to(x, self.output_fmt)
        return self.norm(x)


class TorchvisionTrunk(nn.Module):
    """The encoder of torchvision's ``VisionTransformer``, for maps of any size; shares the model's modules.

    The position embedding is resampled as timm does it.
    """

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.class_token, self.encoder = model.class_token, model.encoder
        self.grid_size = (model.image_size // model.patch_size, model.image_size // model.patch_size)
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": model.hidden_dim, "reduction": model.patch_size, "module": f"encoder.layers.{name}"}
            for name, _ in model.encoder.layers.named_children()
        ]

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def prune_intermediate_layers(self, indices: list[int]) -> list[int]:
        """Drop the blocks behind the last of these indices, which are counted from the start; return them."""
        self.encoder.layers = self.encoder.layers[: max(indices) + 1]
        return indices

    def forward_intermediates(
        self,
        x: Tensor,
        indices: list[int],
        norm: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = True,
    ) -> list[Tensor]:
        """Map [batch, embed_dim, rows, columns] to the maps of some blocks, of the same shape."""
        shape = x.shape
        pos_embed = resample_abs_pos_embed(
            self.encoder.pos_embedding, [shape[2], shape[3]], self.grid_size, num_prefix_tokens=1
        )
        x = torch.cat([self.class_token.expand(shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = self.encoder.dropout(x + pos_embed)
        maps: list[Tensor] = []
        for index, block in enumerate(self.encoder.layers):
            if self.grad_checkpointing and not is_scripting():  # noqa: SIM108 (TorchScript skips only a statement)
                x = checkpoint(block, x)
            else:
                x = block(x)
            if index in indices:
                tokens = self.encoder.ln(x) if norm else x
                maps.append(tokens[:, 1:].transpose(1, 2).reshape(shape))
        return maps


def take_apart(model: nn.Module) -> tuple[nn.Sequential, Any]:
    """Return the stem of a model and its trunk, which takes the stem's output; both share the model's parameters.

    Raises:
        UnsupportedModelError: no conv stem, or a trunk that does not give its blocks' outputs.
    """
    model = _copy_sharing_tensors(model)
    if isinstance(model, VisionTransformer) and isinstance(model.conv_proj, nn.Sequential):
        return model.conv_proj, TorchvisionTrunk(model)
    for path, embed in model.named_modules():
        stem = chain_of_convolutions(embed)
        if stem is not None:
            owner, _, name = path.rpartition(".")
            trunk = model.get_submodule(owner)
            if not hasattr(trunk, "forward_intermediates"):
                raise UnsupportedModelError(
                    f"{type(trunk).__name__} does not give its blocks' outputs (it has no forward_intermediates), so "
                    "there is no map at the patch's stride: use another trunk"
                )
            setattr(trunk, name, MapEmbed(embed))
            return stem, trunk
    raise UnsupportedModelError(_no_chain(model))


def chain_of_convolutions(embed: nn.Module) -> nn.Sequential | None:
    """Return the layers of a patch embedding that is a chain of convolutions, ours or timm's; None of any other."""
    if isinstance(embed, ConvStemEmbed):
        return embed.backbone
    if not isinstance(embed, HybridEmbed) or not isinstance(embed.backbone, ConvStem):
        return None
    last = {} if isinstance(embed.proj, nn.Identity) else {"proj": embed.proj}
    return nn.Sequential(OrderedDict(**dict(embed.backbone.named_children()), **last))


def _no_chain(model: nn.Module) -> str:
    """Return the sentence that says what a model has where a pyramid needs a chain of convolutions."""
    hybrid = next((module for module in model.modules() if isinstance(module, HybridEmbed)), None)
    if hybrid is not None:
        return (
            f"the patch embedding of this {type(model).__name__} is a {type(hybrid.backbone).__name__}, and a pyramid "
            "takes maps from a chain of convolutions: use timm's own features_only=True of that network"
        )
    embed = getattr(model, "patch_embed", None)
    has = "" if embed is None or isinstance(embed, PatchEmbed) else f" (it has a {type(embed).__name__})"
    return (
        f"{type(model).__name__} has no conv stem{has}, and a patch embedding has no maps inside: use "
        "convstem.transplant(model), which gives it a stem, or create one of convstem.list_models()"
    )


def _copy_sharing_tensors(model: nn.Module) -> nn.Module:
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
