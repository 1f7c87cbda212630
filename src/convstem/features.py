"""The feature pyramid: a conv-stem ViT as a backbone with maps at strides 2, 4, 8, 16 and 32.

The stem runs first. Its output enters the trunk, timm's or torchvision's, through the interface of timm's models.
"""

import copy
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import partial
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from timm.layers import Format, HybridEmbed, PatchEmbed, nchw_to, resample_abs_pos_embed
from timm.models import FeatureInfo, checkpoint
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from convstem.errors import ArgumentError, UnsupportedModelError, warn
from convstem.registry.stem_spec import COARSEST
from convstem.stem.embed import ConvStemEmbed
from convstem.stem.find import StemLevel, StemMaps, stem_levels

is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]  # TorchScript cannot read this comment in a method


class MapEmbed(nn.Module):
    """A patch embedding for a trunk whose input is the stem's output: each position of that map is a token.

    Args:
        embed: the patch embedding it replaces, ours or timm's; sizes, output format and norm stay.
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
        """Drop the blocks after the last of these indices (counted from the start), and return the indices."""
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
    """Return a model's stem, and its trunk, which takes the stem's output; both share the model's parameters.

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
    """Return the layers of a patch embedding that is a chain of convolutions (ours or timm's), else None."""
    if isinstance(embed, ConvStemEmbed):
        return embed.backbone
    if not isinstance(embed, HybridEmbed) or not isinstance(embed.backbone, ConvStem):
        return None
    last = {} if isinstance(embed.proj, nn.Identity) else {"proj": embed.proj}
    return nn.Sequential(OrderedDict(**dict(embed.backbone.named_children()), **last))


def _no_chain(model: nn.Module) -> str:
    """Return a sentence that says what the model has instead of a chain of convolutions."""
    hybrid = next((module for module in model.modules() if isinstance(module, HybridEmbed)), None)
    if hybrid is not None:
        return (
            f"the patch embedding of this {type(model).__name__} is a {type(hybrid.backbone).__name__}, but a pyramid "
            "takes maps from a chain of convolutions: use timm's features_only=True on that network"
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


_OF_CLASSIFIER = ("attn_pool.", "fc_norm.", "head.", "head_dist.", "heads.")
"""Prefixes of keys that only a whole model with a classifier has."""


def _places(model: nn.Module) -> tuple[str, str]:
    """Return the key prefixes of a model's stem and of its trunk."""
    for path, embed in model.named_modules():
        if isinstance(embed, ConvStemEmbed):
            return f"{path}.backbone.", path.rpartition("patch_embed")[0]
    return "conv_proj.", ""


def _take_whole_model(
    stem: str, trunk: str, whole: Collection[str], pyramid: nn.Module, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Rename the keys of a whole model's state dict to the pyramid's, in place; a pre-hook of ``load_state_dict``.

    Args:
        stem, trunk: key prefixes, see ``_places``.
        whole: all keys of the model that the pyramid was made from.
        pyramid: one of the classes below.
        state: the state dict; the pyramid's keys start with ``prefix``.
        prefix: where the pyramid is inside the model that is being loaded.

    Warns:
        UserWarning: no key fits the pyramid or the whole model, so ``strict=False`` would load nothing.
    """
    given = [key for key in state if key.startswith(prefix)]
    own = {f"{prefix}{key}" for key in pyramid.state_dict(keep_vars=True)}
    if not any(key.startswith(prefix + stem) for key in given):
        if given and own.isdisjoint(given):
            warn(
                "no key of this state dict belongs to the feature pyramid, nor to the model it was made from "
                f"({given[0]}, ...): load it into the whole model first, or convert it with `convstem convert`"
            )
        return
    for key in given:
        inner = key.removeprefix(prefix)
        new = f"stem.{inner.removeprefix(stem)}" if inner.startswith(stem) else f"trunk.{inner.removeprefix(trunk)}"
        if f"{prefix}{new}" in own:
            state[f"{prefix}{new}"] = state.pop(key)
        elif inner in whole or inner.startswith(_OF_CLASSIFIER):
            del state[key]  # no map needs it


class PyramidLevels(nn.Module):
    """The feature maps of a conv-stem ViT; the two subclasses return them as timm and as torchvision expect.

    Levels finer than the patch come from inside the stem. Those at the patch's stride come from blocks of the trunk,
    after the norm and without prefix tokens. Coarser ones come from max-pooling. At stride s, an image of height x
    width pixels has a map of ceil(height / s) x ceil(width / s). Layers that no returned level needs are dropped.

    Args:
        model: a conv-stem ViT of timm or torchvision; it is not changed, and shares its parameters with the pyramid.
        out_indices: the levels to return, negative from the coarsest; an int n means the last n; default: all.
        output_fmt: ``NCHW``, ``NHWC``, ``NCL`` or ``NLC``.
        pyramid_blocks: the trunk's blocks whose outputs are levels, negative from the last; an int n means the last n.
        output_stride: the coarsest stride; later levels repeat the map of this stride.

    Raises:
        ArgumentError: a level, block, output format or output stride that does not exist.
        UnsupportedModelError: the model has no conv stem, or a trunk that does not give its blocks' outputs.

    Source: Li et al., arXiv 2203.16527 (ViTDet), for the last block and the pooling.
    """

    output_fmt: Format  # for TorchScript, which takes it for a string otherwise

    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int] | None = None,
        output_fmt: str = "NCHW",
        pyramid_blocks: int | Sequence[int] = 1,
        output_stride: int = COARSEST,
    ) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(
            partial(_take_whole_model, *_places(model), frozenset(model.state_dict()))
        )
        stem, trunk = take_apart(model)
        inside = stem_levels(stem)
        names = [f"block {index}" for index in range(len(trunk.feature_info))]
        blocks = sorted(_resolve("pyramid_blocks", pyramid_blocks, names))
        if len({*blocks}) < len(blocks):
            raise ArgumentError(f"pyramid_blocks must name each block once; got {pyramid_blocks!r}")
        pools = _pools(trunk.feature_info[-1]["reduction"], output_stride)
        info = _level_info(inside, [trunk.feature_info[block] for block in blocks], pools)
        strides = [f"{index} (stride {level['reduction']})" for index, level in enumerate(info)]
        out = _resolve("out_indices", len(info) if out_indices is None else out_indices, strides)

        wanted = [index for index in range(len(inside)) if index in out]
        behind = max(max(out) + 1 - len(inside), 0)  # the number of levels that need the trunk
        self.stem = StemMaps(stem, [inside[index] for index in wanted], whole=behind > 0)
        self.trunk = trunk if behind else None
        self.blocks = trunk.prune_intermediate_layers(blocks[:behind]) if behind else []
        self.pools = nn.ModuleList(pool for pool, _ in pools[: max(behind - len(blocks), 0)])
        made = [*wanted, *range(len(inside), len(inside) + behind)]
        self.take = [made.index(index) for index in out]
        self.feature_info = FeatureInfo(info, tuple(out))
        self.out_channels: list[int] = self.feature_info.channels()
        self.output_fmt = _format(output_fmt)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of the trunk's blocks in the backward pass, as timm's models do."""
        if self.trunk is not None:
            self.trunk.set_grad_checkpointing(enable)

    def collect(self, x: Tensor) -> list[Tensor]:
        """Map images [batch, in_chans, height, width] to the maps of the chosen levels, in the chosen order."""
        maps, x = self.stem(x)
        if self.trunk is not None:
            maps += self.trunk.forward_intermediates(
                x, indices=self.blocks, norm=True, output_fmt="NCHW", intermediates_only=True
            )
            x = maps[-1]
        for pool in self.pools:
            x = pool(x)
            maps.append(x)
        return [nchw_to(maps[index], self.output_fmt) for index in self.take]


class FeaturePyramid(PyramidLevels):
    """A backbone with timm's interface: a list of maps. See ``PyramidLevels``."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images [batch, in_chans, height, width] to the maps of the chosen levels, in the chosen order."""
        return self.collect(x)


class FeaturePyramidDict(PyramidLevels):
    """A backbone with torchvision's interface: an ``OrderedDict`` of maps, named "0", "1" and so on."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images [batch, in_chans, height, width] to the maps of the chosen levels, in the chosen order."""
        maps: dict[str, Tensor] = OrderedDict()
        for index, level in enumerate(self.collect(x)):
            maps[str(index)] = level
        return maps


def feature_pyramid(
    model: nn.Module, out_indices: int | Sequence[int] | None = None, pyramid_blocks: int | Sequence[int] = 1
) -> FeaturePyramidDict:
    """Return a model's feature pyramid as a backbone for torchvision's detectors.

    Args:
        model: a conv-stem ViT of timm or torchvision, or timm's MobileCLIP-B (``vit_base_mci_224``), whose patch
            embedding is a chain of convolutions too. A timm model takes images of any size if it was created with
            ``dynamic_img_size=True``; a torchvision model always does.
        out_indices, pyramid_blocks: see ``PyramidLevels``.

    Returns:
        A module that maps images [batch, in_chans, height, width] to an ``OrderedDict`` of maps [batch, channels, rows,
        columns] named "0", "1" and so on; ``out_channels`` lists their channels.

    Raises:
        ArgumentError: a level or block that does not exist.
        UnsupportedModelError: the model has no conv stem, or a trunk that does not give its blocks' outputs.
    """
    return FeaturePyramidDict(model, out_indices, pyramid_blocks=pyramid_blocks)


def _level_info(
    inside: Sequence[StemLevel], blocks: Sequence[dict[str, Any]], pools: Sequence[tuple[nn.Module, int]]
) -> list[dict[str, Any]]:
    """Return timm's ``feature_info`` of all levels; module names are those in the pyramid."""
    info = [{"num_chs": level.channels, "reduction": level.stride, "module": f"stem.{level.name}"} for level in inside]
    for block in blocks:  # the trunk's norm follows; in SAM's trunk it includes a neck with other channels
        channels = block.get("num_chs_norm", block["num_chs"])
        info.append({**block, "num_chs": channels, "module": f"trunk.{block['module']}"})
    for index, (_, stride) in enumerate(pools):
        info.append({"num_chs": info[-1]["num_chs"], "reduction": stride, "module": f"pools.{index}"})
    return info


def _pools(patch: int, output_stride: int) -> list[tuple[nn.Module, int]]:
    """Return the poolings from the patch's stride to the coarsest, each with the stride after it."""
    output_stride = patch if patch > output_stride == COARSEST else output_stride  # tokens are farther apart than 32
    strides = [patch]
    while strides[-1] * 2 <= COARSEST:
        strides.append(strides[-1] * 2)
    if output_stride not in strides:
        raise ArgumentError(
            f"output_stride must be one of {', '.join(map(str, strides))} for this trunk, with blocks at {patch}; got "
            f"{output_stride!r}: a ViT cannot dilate, so a finer one needs smaller patches, or the stem's maps"
        )
    return [
        (nn.MaxPool2d(2, ceil_mode=True) if stride <= output_stride else nn.Identity(), min(stride, output_stride))
        for stride in strides[1:]
    ]


def _format(name: str) -> Format:
    if name not in list(Format):
        raise ArgumentError(f"output_fmt must be one of {', '.join(sorted(Format))}; got {name!r}")
    return Format(name)


def _resolve(argument: str, indices: int | Sequence[int], choices: Sequence[str]) -> list[int]:
    """Return indices counted from the start; an int n means the last n."""
    count = len(choices)
    wanted = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not wanted or not all(isinstance(index, Integral) and -count <= index < count for index in wanted):
        raise ArgumentError(
            f"{argument} must be indices from {-count} to {count - 1}, or a count from the end; got {indices!r}: there "
            f"are {', '.join(choices)}"
        )
    return [index % count for index in wanted]
