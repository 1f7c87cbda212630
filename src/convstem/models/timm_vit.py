"""The timm model: timm's ``VisionTransformer`` with timm's ``ConvStem`` as its patch embedding."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Any

import torch
from timm.layers import (
    LayerNorm,
    build_sincos2d_pos_embed,
    resample_abs_pos_embed,
    to_2tuple,
)
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from convstem.errors import ArgumentTypeError
from convstem.features.pyramid import pyramid_on_request
from convstem.hub.provenance import forget
from convstem.layouts.conversion import convert
from convstem.layouts.diagnosis import check_checkpoint, explain_on_load
from convstem.layouts.recognise import recognise
from convstem.registry import catalog
from convstem.registry.records import ModelSpec
from convstem.registry.stem_spec import StemSpec, check_arguments, check_heads
from convstem.stem.embed import ConvStemEmbed, feature_size
from convstem.stem.init import init_stem
from convstem.stem.norms import fit_norm, layer_norm
from convstem.stem.vocabulary import override_stem
from convstem.transplanting.state_dicts import transplant_state_dict
from convstem.weights.from_config import checks_config
from convstem.weights.pretrained import build_pretrained


class ConvStemVisionTransformer(VisionTransformer):
    """timm's ``VisionTransformer`` on a conv stem, whose settings are JSON-plain so that a Hub config can hold them.

    Args:
        stem_channels, stem_strides, stem_kernel_sizes, stem_norm, stem_act, stem_bias: see ``StemSpec``.
        norm_eps: epsilon of the trunk's LayerNorms; default: timm's, 1e-6.
        kwargs: arguments of timm's ``VisionTransformer``.

    Raises:
        ArgumentError: the stem, the image size or ``embed_dim`` / ``num_heads`` do not fit together.
        ArgumentTypeError: an argument that a conv stem replaces (``embed_layer``, ``embed_norm_layer``), or one that is
            not known.
    """

    __jit_unused_properties__ = ("stem_spec",)  # TorchScript would compile it

    def __init__(
        self,
        stem_channels: tuple[int, ...],
        stem_strides: tuple[int, ...] = (),
        stem_kernel_sizes: tuple[int, ...] = (),
        stem_norm: str = "batchnorm2d",
        stem_act: str = "relu",
        stem_bias: bool = False,
        norm_eps: float | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("embed_layer", "embed_norm_layer"):
            if kwargs.pop(name, None) is not None:
                raise ArgumentTypeError(
                    f"{name} cannot be set: the conv stem is the patch embedding; use the stem_* arguments"
                )
        check_arguments(type(self).__name__, kwargs, _ARGUMENTS)
        stem = StemSpec(stem_channels, stem_strides, stem_kernel_sizes, stem_norm, stem_act, stem_bias)
        kwargs.setdefault("patch_size", stem.patch_size)
        check_heads(kwargs.get("embed_dim", 768), kwargs.get("num_heads", 12))
        if norm_eps is not None:
            kwargs["norm_layer"] = layer_norm(LayerNorm, norm_eps, kwargs.get("norm_layer"))
        super().__init__(embed_layer=partial(ConvStemEmbed, stem), **kwargs)
        self.register_load_state_dict_pre_hook(explain_on_load("timm"))

    @property
    def stem_spec(self) -> StemSpec:
        """The stem."""
        return self.patch_embed.stem_spec

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights in place: timm's scheme for the trunk, the paper's for the stem."""
        super().init_weights(mode, needs_reset)
        init_stem(self.patch_embed, self.stem_spec.norm)


_ARGUMENTS = {
    name for cls in (VisionTransformer, ConvStemVisionTransformer) for name in inspect.signature(cls).parameters
} - {"kwargs"}


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
    """Return a pretrained checkpoint's state dict in our layout, with our stem and at the model's grid size.

    Unwraps ``model`` / ``state_dict`` containers, converts torchvision's layout, transplants the patch embedding of a
    patchify ViT, and resamples the position embedding. A checkpoint that has a stem is never transplanted again.
    """
    state_dict = state_dict.get("model", state_dict)
    state_dict = state_dict.get("state_dict", state_dict)
    layout = recognise(state_dict).layout
    if layout is not None and layout.name == "torchvision":
        state_dict = convert(state_dict, source="torchvision", target="timm").state_dict
    if "patch_embed.proj.weight" in state_dict:
        cfg, in_chans = model.pretrained_cfg, model.in_chans
        state_dict = transplant_state_dict(state_dict, model.stem_spec, cfg["mean"], cfg["std"], in_chans)
        cfg["input_size"] = (in_chans, *cfg["input_size"][1:])  # the stem is adapted: timm has nothing left to do
    if "pos_embed" in state_dict and model.pos_embed is not None and state_dict["pos_embed"].ndim == 3:
        state_dict = {**state_dict, "pos_embed": _fit_pos_embed(state_dict["pos_embed"], model)}
    state_dict = dict(state_dict)
    fit_norm(model.patch_embed.backbone, state_dict, "patch_embed.backbone.")
    check_checkpoint(state_dict, model)
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


@checks_config
@pyramid_on_request
def create_timm_model(name: str, pretrained: bool = False, as_saved: bool = False, **kwargs: Any) -> nn.Module:
    """Build one of our architectures through timm's builder.

    Args:
        name: timm name of the architecture.
        pretrained: load the weights that ``pretrained_cfg`` names.
        as_saved: see ``build_pretrained``.
        kwargs: arguments of timm's builder and of ``ConvStemVisionTransformer``.
    """
    spec = catalog.models()[name]
    build = partial(
        build_model_with_cfg,
        _MODEL_CLASSES[spec.pos_embed],
        name,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
    )
    kwargs.setdefault("in_chans", _input_channels(name, **kwargs))
    arguments = model_args(spec, kwargs)
    if pretrained:
        return build_pretrained(build, name, as_saved=as_saved, **arguments)
    model = build(pretrained=False, **arguments)
    forget(model)  # the cfg describes pretrained weights, and these are not
    return model


def _input_channels(
    name: str, pretrained_cfg: Any = None, pretrained_cfg_overlay: dict[str, Any] | None = None, **kwargs: Any
) -> int:
    """Return the channels of the images a pretrained cfg describes, which timm's builder would use."""
    return int(resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay).input_size[0])


def model_args(spec: ModelSpec, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a row, overridden by the caller's; the stem's are overridden as one."""
    kwargs = dict(kwargs)
    changes = {name.removeprefix("stem_"): kwargs.pop(name, None) for name in spec.stem.model_args}
    patch_size = kwargs.pop("patch_size", spec.patch_size)
    stem = override_stem(spec.stem_for(kwargs.get("in_chans", 3)), patch_size, **changes)
    row = {name: getattr(spec, name) for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    return {**row, **spec.trunk_args, **stem.model_args, "patch_size": patch_size, **kwargs}
