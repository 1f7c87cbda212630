"""The timm model: timm's ``VisionTransformer`` with timm's ``ConvStem`` as its patch embedding."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from timm.layers import (
    Format,
    HybridEmbed,
    build_sincos2d_pos_embed,
    nchw_to,
    resample_abs_pos_embed,
    to_2tuple,
)
from timm.layers.norm import LayerNorm2d
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from convstem import registry
from convstem.checkpoints import explain_mismatch
from convstem.layouts import convert, detect_layout
from convstem.specs import ModelSpec, StemSpec, check_heads
from convstem.stem import init_stem, override_stem

_NORM_LAYERS = {"batchnorm2d": nn.BatchNorm2d, "layernorm2d": partial(LayerNorm2d, eps=1e-6)}


def build_conv_stem(stem: StemSpec, in_chans: int, embed_dim: int, device: Any = None, dtype: Any = None) -> ConvStem:
    """Return timm's ``ConvStem`` for a spec; its last layer is the 1x1, without norm and activation.

    Maps images [batch, in_chans, height, width] to [batch, embed_dim, ceil(height / patch), ceil(width / patch)].
    """
    backbone = ConvStem(
        in_chans=in_chans,
        depth=len(stem.channels) + 1,
        channels=(*stem.channels, embed_dim),
        kernel_size=(*stem.kernel_sizes, 1),
        stride=(*stem.strides, 1),
        padding=(*((kernel - 1) // 2 for kernel in stem.kernel_sizes), 0),
        norm_layer=_NORM_LAYERS[stem.norm],
        act_layer=stem.act,
        device=device,
        dtype=dtype,
    )
    if stem.bias:  # timm's ConvStem gives only its last layer a bias
        for layer in list(backbone)[:-1]:
            zeros = torch.zeros(layer.conv.out_channels, device=device, dtype=dtype)
            layer.conv.bias = nn.Parameter(zeros)
    backbone.num_features = embed_dim  # HybridEmbed asks for it instead of running the stem
    return backbone


class ConvStemEmbed(HybridEmbed):
    """timm's ``HybridEmbed`` around a conv stem, with ``PatchEmbed``'s checks of the image size.

    Args:
        stem: the stem.
        img_size: height and width in pixels, or one number.
        patch_size: must equal ``stem.patch_size``.
        strict_img_size: refuse images of another size than ``img_size``.
        dynamic_img_pad: accepted for timm's sake; a stem pads by itself, its feature map is rounded up.
        bias: ignored: the last 1x1 always has a bias.

    Raises:
        ValueError: the image size is not a multiple of the patch size (unless the size is dynamic).
    """

    def __init__(
        self,
        stem: StemSpec,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        bias: bool = True,
        flatten: bool = True,
        output_fmt: str | None = None,
        strict_img_size: bool = True,
        dynamic_img_pad: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        size = to_2tuple(img_size)
        if strict_img_size:
            check_img_size(size, stem.patch_size)
        super().__init__(
            build_conv_stem(stem, in_chans, embed_dim, device=device, dtype=dtype),
            img_size=size,
            patch_size=1,  # HybridEmbed's patch is on the feature map
            feature_size=feature_size(size, stem.patch_size),
            feature_ratio=stem.patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            proj=False,
            flatten=flatten,
            output_fmt=output_fmt,
            strict_img_size=strict_img_size,
            device=device,
            dtype=dtype,
        )

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid [rows, columns] for an image size in pixels; the stem rounds up."""
        return (
            (img_size[0] + self.feature_ratio[0] - 1) // self.feature_ratio[0],
            (img_size[1] + self.feature_ratio[1] - 1) // self.feature_ratio[1],
        )

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the image size in pixels; the patch size is fixed by the stem.

        Raises:
            ValueError: another patch size, or an image size that is not a multiple of it.
        """
        patch = self.feature_ratio[0]
        if patch_size is not None and to_2tuple(patch_size) != (patch, patch):
            raise ValueError(
                f"the patch size of a conv stem is the product of its strides, {patch}; got patch_size={patch_size}: "
                "create the model with other stem_strides instead"
            )
        size = to_2tuple(img_size) if img_size is not None else self.img_size
        if self.strict_img_size:
            check_img_size(size, patch)
        super().set_input_size(
            img_size=size,
            feature_size=feature_size(size, patch),
            feature_ratio=patch,
            feature_dim=self.feature_dim,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images [batch, in_chans, height, width] to tokens [batch, tokens, embed_dim] (or ``output_fmt``)."""
        _, channels, height, width = x.shape
        torch._assert(channels == self.in_chans, f"Input channels ({channels}) don't match model ({self.in_chans}).")
        if self.strict_img_size:
            torch._assert(
                height == self.img_size[0],
                f"Input height ({height}) doesn't match model ({self.img_size[0]}).",
            )
            torch._assert(width == self.img_size[1], f"Input width ({width}) doesn't match model ({self.img_size[1]}).")
        x = self.backbone(x)
        if self.flatten:
            x = x.flatten(2).transpose(1, 2)
        elif self.output_fmt != Format.NCHW:
            x = nchw_to(x, self.output_fmt)
        return x


def feature_size(img_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return the grid [rows, columns] of an image size in pixels."""
    return math.ceil(img_size[0] / patch_size), math.ceil(img_size[1] / patch_size)


def check_img_size(img_size: tuple[int, int], patch_size: int) -> None:
    """Raise ``ValueError`` unless height and width in pixels are positive multiples of the patch size."""
    if any(size < 1 or size % patch_size for size in img_size):
        low = tuple(max(size // patch_size, 1) * patch_size for size in img_size)
        high = tuple(math.ceil(max(size, 1) / patch_size) * patch_size for size in img_size)
        raise ValueError(
            f"img_size must be a multiple of the patch size {patch_size}; got {img_size[0]}x{img_size[1]}: use "
            f"{low[0]}x{low[1]} or {high[0]}x{high[1]}, or pass dynamic_img_size=True to accept any size"
        )


class ConvStemVisionTransformer(VisionTransformer):
    """timm's ``VisionTransformer`` on a conv stem, whose settings are JSON-plain so that a Hub config can hold them.

    Args:
        stem_channels, stem_strides, stem_kernel_sizes, stem_norm, stem_act, stem_bias: see ``StemSpec``.
        kwargs: arguments of timm's ``VisionTransformer``.

    Raises:
        ValueError: the stem, the image size or ``embed_dim`` / ``num_heads`` do not fit together.
        TypeError: an argument that a conv stem replaces (``embed_layer``, ``embed_norm_layer``), or an unknown one.
    """

    def __init__(
        self,
        stem_channels: tuple[int, ...],
        stem_strides: tuple[int, ...] = (),
        stem_kernel_sizes: tuple[int, ...] = (),
        stem_norm: str = "batchnorm2d",
        stem_act: str = "relu",
        stem_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        for name in ("embed_layer", "embed_norm_layer"):
            if kwargs.pop(name, None) is not None:
                raise TypeError(f"{name} cannot be set: the conv stem is the patch embedding; use the stem_* arguments")
        stem = StemSpec(stem_channels, stem_strides, stem_kernel_sizes, stem_norm, stem_act, stem_bias)
        kwargs.setdefault("patch_size", stem.patch_size)
        check_heads(kwargs.get("embed_dim", 768), kwargs.get("num_heads", 12))
        self.stem_spec = stem
        super().__init__(embed_layer=partial(ConvStemEmbed, stem), **kwargs)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights in place: timm's scheme for the trunk, the paper's for the stem."""
        super().init_weights(mode, needs_reset)
        init_stem(self.patch_embed)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        error_msgs: list[str] = args[-1]
        error_msgs += explain_mismatch(own, self, "timm")
        super()._load_from_state_dict(state_dict, prefix, *args)


class SinCosConvStemVisionTransformer(ConvStemVisionTransformer):
    """A conv-stem ViT whose position embedding is fixed: two-dimensional sine-cosine, zero for the class token.

    It is a buffer under the usual key, so that optimizers do not see it and checkpoints keep it.

    Source: Chen et al., arXiv 2104.02057; moco-v3 vits.py, ``build_2d_sincos_position_embedding``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._fix_pos_embed()

    def _fix_pos_embed(self) -> None:
        like = self.pos_embed
        del self.pos_embed
        grid = list(self.patch_embed.grid_size)
        # moco-v3 counts tokens column by column: the width axis comes first, and changes slowest
        tokens = build_sincos2d_pos_embed(grid, self.embed_dim, reverse_coord=True, interleave_sin_cos=True).to(like)
        prefix = tokens.new_zeros(0 if self.no_embed_class else self.num_prefix_tokens, self.embed_dim)
        self.register_buffer("pos_embed", torch.cat([prefix, tokens])[None])

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights in place and recompute the position embedding."""
        super().init_weights(mode, needs_reset)
        self._fix_pos_embed()

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the image size in pixels; the position embedding is recomputed, not resampled."""
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        self._fix_pos_embed()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay; the position embedding is not a parameter here."""
        return super().no_weight_decay() - {"pos_embed"}


_MODEL_CLASSES = {"learn": ConvStemVisionTransformer, "sincos2d": SinCosConvStemVisionTransformer}


def checkpoint_filter_fn(state_dict: dict[str, Any], model: VisionTransformer) -> dict[str, Tensor]:
    """Return a checkpoint's state dict in our layout and at the model's grid size.

    Unwraps ``model`` / ``state_dict`` containers, converts torchvision's layout, resamples the position embedding.
    """
    state_dict = state_dict.get("model", state_dict)
    state_dict = state_dict.get("state_dict", state_dict)
    if detect_layout(state_dict) == "torchvision":
        state_dict = convert(state_dict, source="torchvision", target="timm")
    if "pos_embed" in state_dict and model.pos_embed is not None:
        state_dict = {**state_dict, "pos_embed": _fit_pos_embed(state_dict["pos_embed"], model)}
    return state_dict


def _fit_pos_embed(pos_embed: Tensor, model: VisionTransformer) -> Tensor:
    if isinstance(model, SinCosConvStemVisionTransformer):
        return model.pos_embed  # fixed by the grid
    source = getattr(model, "pretrained_model_args", {}).get("img_size") or model.pretrained_cfg["input_size"][-2:]
    old: tuple[int, int] | None = feature_size(to_2tuple(source), model.stem_spec.patch_size)
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    if old and math.prod(old) != pos_embed.shape[1] - prefix:
        old = None  # metadata does not describe this file: timm then assumes a square grid
    if old == model.patch_embed.grid_size and pos_embed.shape == model.pos_embed.shape:
        return pos_embed
    return resample_abs_pos_embed(
        pos_embed, new_size=model.patch_embed.grid_size, old_size=old, num_prefix_tokens=prefix, verbose=True
    )


def create_timm_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build one of our architectures through timm's builder.

    Args:
        name: timm name of the architecture.
        pretrained: load the weights that ``pretrained_cfg`` names.
        kwargs: arguments of timm's builder and of ``ConvStemVisionTransformer``.
    """
    spec = registry.find(name)
    return build_model_with_cfg(
        _MODEL_CLASSES[spec.pos_embed],
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **model_args(spec, kwargs),
    )


def model_args(spec: ModelSpec, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a row, overridden by the caller's; the stem's are overridden as one."""
    kwargs = dict(kwargs)
    changes = {name.removeprefix("stem_"): kwargs.pop(name, None) for name in spec.stem.model_args}
    patch_size = kwargs.pop("patch_size", spec.patch_size)
    stem = override_stem(spec.stem, patch_size, **changes)
    row = {name: getattr(spec, name) for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    return {**row, **spec.trunk_args, **stem.model_args, "patch_size": patch_size, **kwargs}
