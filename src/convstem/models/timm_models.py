"""Builds our timm models: timm's own class with a conv stem instead of its patch embedding."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import LayerNorm, build_sincos2d_pos_embed, to_2tuple
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    get_model_traits,
    model_entrypoint,
    resolve_pretrained_cfg,
)
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from convstem.errors import ArgumentError, ArgumentTypeError, ConvStemError
from convstem.features import FeaturePyramid
from convstem.hub.config import argument_kinds, forget
from convstem.layouts.diagnosis import explain_on_load
from convstem.registry import catalog
from convstem.registry.stem_spec import StemSpec, check_heads
from convstem.registry.strides import at_stride, check_stride
from convstem.registry.tables import RESIZED, resized_from, resized_input, trunks
from convstem.stem.carried import normalised_range
from convstem.stem.find import embed_path
from convstem.stem.norms import layer_norm
from convstem.stem.vocabulary import override_stem, own_stem
from convstem.transplanting.grid import check_trunk, needs_resizing, resized_images
from convstem.transplanting.patch_embedding import find_patch_embedding, projection_of
from convstem.transplanting.surgery import put_stem
from convstem.upstream import timm_set_metadata
from convstem.weights.fit import fit, stem_channels
from convstem.weights.pretrained import Request, load_pretrained


class SinCosVisionTransformer(VisionTransformer):
    """A ViT with a fixed position embedding: two-dimensional sine-cosine, zero for the class token.

    It is a buffer under the usual key: optimizers do not see it, checkpoints keep it.

    Source: Chen et al., arXiv 2104.02057; moco-v3 vits.py, ``build_2d_sincos_position_embedding``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._fix_pos_embed()

    def _fix_pos_embed(self) -> None:
        like = self.pos_embed
        del self.pos_embed
        grid = list(self.patch_embed.grid_size)
        # moco-v3 counts tokens column by column: the width axis comes first and changes slowest
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


_STEM = [field.name for field in fields(StemSpec)]

_FEATURES = {"out_indices": 3, "feature_cls": "getter"}
"""timm's settings of its plain ViTs for ``features_only=True``: the last three blocks."""

_NAFLEX = ("timm.models.eva", "timm.models.vision_transformer")
"""Modules that build another class if ``TIMM_USE_NAFLEXVIT`` is set, unless ``use_naflex=False``."""

_CLASSES = {"learn": VisionTransformer, "rope": Eva, "sincos2d": SinCosVisionTransformer}
"""Classes of our own families, by ``pos_embed``."""

_SIZES = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "img_size")
"""Fields of a family's row that are arguments of its class."""


_PYRAMID_ARGS = ("out_indices", "output_fmt", "output_stride", "pyramid_blocks")

_CLASSIFIER_FIELDS = ("num_classes", "classifier", "global_pool")
"""Fields of a pretrained cfg that timm too leaves out of a feature extractor's."""


def create_timm_model(
    name: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: Any = None,
    pretrained_model_args: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build one of our timm models, as timm's own entrypoints do.

    A file with a stem is loaded as it is; a patch embedding is transplanted. Without weights the stem is initialised as
    in the paper.

    Args:
        name: our timm name, without tag.
        pretrained, pretrained_cfg, pretrained_cfg_overlay, cache_dir: see ``timm.create_model``.
        pretrained_model_args: the arguments of a saved model, from its config.
        kwargs: arguments of the trunk's class, ``stem_channels`` etc. (see ``StemSpec``), ``norm_eps`` (epsilon of
            the trunk's LayerNorms) and ``stride`` (see ``convstem.transplant``).

    Raises:
        ArgumentError, ArgumentTypeError: the caller's arguments do not fit; the message says what would.
        CheckpointError, DeviceMemoryError, HubError, InvalidFileError: see ``weights.pretrained``.
    """
    request = Request(name, pretrained_cfg, pretrained_cfg_overlay, cache_dir, pretrained_model_args or {}, kwargs)
    pyramid = _take_pyramid(kwargs, name)
    with request.blaming(partial(create_timm_model, name)):
        tokens = _tokens(request)
        if pretrained:
            model: Any = load_pretrained(request, partial(_build, request, tokens))
        else:
            model = _build(request, tokens, request.cfg, {}, **kwargs)
            forget(model)  # the cfg describes pretrained weights, which this model does not have
        if tokens and tokens.img_size:
            model.pretrained_cfg = model.default_cfg = resized_images(model.pretrained_cfg, 1, tokens.times)
    return model if pyramid is None else _as_pyramid(model, pyramid)


def _take_pyramid(kwargs: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Take the arguments of a feature pyramid out of an entrypoint's; None if no pyramid is asked for.

    timm looks only for its own feature classes, so ours must not reach it. What is left asks for a model without head
    that takes images of any size, where its trunk can.

    Args:
        kwargs: of the entrypoint, changed in place.
        name: timm name of the model, which tells whether its trunk takes ``dynamic_img_size``.
    """
    feature_cls = kwargs.get("feature_cls")
    if not (kwargs.get("features_only") and isinstance(feature_cls, str) and feature_cls.lower() == "pyramid"):
        return None
    del kwargs["features_only"], kwargs["feature_cls"]
    given = {name: kwargs.pop(name) for name in _PYRAMID_ARGS if name in kwargs}
    kwargs["num_classes"] = 0
    if "dynamic_img_size" in argument_kinds(name):  # else its positions are tied to a size, such as BEiT's
        kwargs.setdefault("dynamic_img_size", True)
    return given


def _as_pyramid(model: Any, given: dict[str, Any]) -> nn.Module:
    """Return the feature pyramid of a model, with the metadata that timm gives its feature extractors.

    Args:
        model: one of our timm models.
        given: what ``_take_pyramid`` took.
    """
    pyramid: Any = FeaturePyramid(model, **given)
    cfg = {field: value for field, value in model.pretrained_cfg.items() if field not in _CLASSIFIER_FIELDS}
    pyramid.pretrained_cfg = pyramid.default_cfg = cfg
    traits = get_model_traits(model)
    pyramid.in_chans = traits.pop("in_chans")
    traits.pop("num_classes", None)
    timm_set_metadata(pyramid, {}, **traits)
    return pyramid


class _Tokens(NamedTuple):
    """Tokens at a stride set by the caller or a config."""

    patch: int
    """Pixels of a patch of the plain model."""
    stride: int
    times: int
    """Factor by which the default image size grows."""
    img_size: tuple[int, int] | None
    """The larger image size; None if it does not grow, or if the caller or a config sets a size."""


def _tokens(request: Request) -> _Tokens | None:
    """Return the tokens of ``stride``, or None if no stride was given."""
    given = {**request.saved, **request.kwargs}
    if given.get("stride") is None:
        return None
    patch = to_2tuple(given.get("patch_size") or catalog.find(request.name).patch_size)[0]
    size = given.get("img_size") or request.cfg.input_size[1:]
    stride = check_stride(given["stride"], patch, to_2tuple(size))
    times = max(stride, patch) // max(request.saved.get("stride") or patch, patch)
    larger = tuple(side * times for side in to_2tuple(size)) if times > 1 and not given.get("img_size") else None
    return _Tokens(patch, stride, times, larger)


def _build(
    request: Request,
    tokens: _Tokens | None,
    cfg: PretrainedCfg,
    header: Mapping[str, Any],
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a model and load its weights; ``cfg`` names the local file, if there is one.

    Args:
        tokens: see ``_tokens``.
        header: of that file, if known.
    """
    kwargs.pop("stride", None)
    if tokens:  # the trunk gets the stride as its patch size, so that its grid is right
        kwargs["patch_size"] = tokens.stride
        kwargs |= {"img_size": tokens.img_size} if tokens.img_size else {}
    for argument in ("embed_layer", "embed_norm_layer"):
        if kwargs.pop(argument, None) is not None:
            raise ArgumentTypeError(
                f"{argument} cannot be set: the conv stem is the patch embedding; use the stem_* arguments"
            )
    eps = kwargs.pop("norm_eps", None)
    if eps is not None:
        kwargs["norm_layer"] = layer_norm(LayerNorm, eps, kwargs.get("norm_layer"))
    changes = {field: kwargs.pop(f"stem_{field}", None) for field in _STEM}
    channels = stem_channels(header)
    if header and not channels:  # the file has a patch embedding; a saved model's own stem may be too narrow for it
        changes = {
            field: None if value == request.saved.get(f"stem_{field}") else value for field, value in changes.items()
        }
    make = partial(_make, request.name, cfg, tokens, changes, channels)
    with _caller_errors(request.name):
        model = build_model_with_cfg(
            make,
            request.name,
            pretrained,
            pretrained_cfg=cfg,
            pretrained_filter_fn=fit,
            feature_cfg=dict(_FEATURES),
            cache_dir=request.cache_dir,
            pretrained_model_args=dict(request.saved),
            **{**_own_size(request.name, cfg, kwargs), **kwargs},
        )
    path = str(embed_path(model))
    size = {"img_size": tokens.img_size} if tokens and tokens.img_size else {}
    timm_set_metadata(model, {**model.get_submodule(path).model_args, **size})
    trunk = model.get_submodule(path.rpartition(".")[0])  # features_only=True wraps it
    trunk.register_load_state_dict_pre_hook(explain_on_load("timm"))  # from here on: ``fit`` explains for itself
    return model


def _make(
    name: str,
    cfg: PretrainedCfg,
    tokens: _Tokens | None,
    changes: dict[str, Any],
    channels: tuple[int, ...],
    **kwargs: Any,
) -> nn.Module:
    """Return timm's class with a fresh stem in it.

    Args:
        cfg: pretrained cfg of the name.
        tokens: see ``_tokens``.
        changes: fields of ``StemSpec`` that the caller gave.
        channels: of the stem in the weights file, if that is known and has a stem.
    """
    trunk = trunks().get(name)
    model = _family(name, kwargs) if trunk is None else _trunk(trunk, cfg, kwargs)
    projection = projection_of(find_patch_embedding(model)[1])
    embed_dim, in_chans, patch, _ = projection.weight.shape
    if tokens:
        patch = tokens.patch
        check_trunk(model, patch, tokens.stride)
    stem = _stem(name, patch, tokens and tokens.stride, embed_dim, in_chans, changes, channels)
    embed: Any = put_stem(model, stem, patch)
    known = normalised_range(cfg.mean, cfg.std, in_chans)
    embed.lowest = known and known[0]
    embed.resized_from = _resized(trunk, patch)
    return model


def _family(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build timm's class with the sizes of one of our own families."""
    spec = catalog.models()[name]
    arguments = {**{field: getattr(spec, field) for field in _SIZES}, **spec.trunk_args, **kwargs}
    check_heads(arguments["embed_dim"], arguments["num_heads"])
    return _CLASSES[spec.pos_embed](**arguments)


def _trunk(trunk: str, cfg: PretrainedCfg, kwargs: dict[str, Any]) -> nn.Module:
    """Build timm's own model of a trunk, without its weights."""
    entrypoint = model_entrypoint(trunk)
    if entrypoint.__module__ in _NAFLEX:
        kwargs = {"use_naflex": False, **kwargs}
    plain = replace(cfg, architecture=trunk, first_conv=resolve_pretrained_cfg(trunk).first_conv)
    return entrypoint(pretrained=False, pretrained_cfg=plain, **kwargs)


def _stem(
    name: str,
    patch: int,
    stride: int | None,
    embed_dim: int,
    in_chans: int,
    changes: dict[str, Any],
    channels: tuple[int, ...],
) -> StemSpec:
    """Return the stem of a model: the caller's, else the file's, else the name's own; see ``own_stem``.

    The stem of a file or saved model may be for another stride; its weights keep their shapes.
    """
    spec = catalog.models().get(name)
    product = None if stride else patch  # what the caller's strides must multiply to
    stride = stride or patch
    made = RESIZED if needs_resizing(patch) and changes["strides"] else patch  # the caller's strides replace these
    stem = own_stem(spec, made, embed_dim, in_chans, stride if made == patch else None)
    if channels and len(channels) != len(stem.channels) and changes["channels"] is None:
        stem = own_stem(spec, made, embed_dim, in_chans)  # the file was saved at another stride
    default = spec is None or stem != spec.stem or not spec.stem_channels
    if default and changes["channels"] is None and len(channels) == len(stem.channels):
        stem = replace(stem, channels=channels)
    return at_stride(override_stem(stem, product, **changes), stride)


def _resized(trunk: str | None, patch: int) -> int | None:
    """Return the patch size of a trunk's own weights if the model's patches are larger, else None."""
    own = resized_from(trunk) if trunk else None
    return None if own == patch else own


def _own_size(name: str, cfg: PretrainedCfg, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch and image size to pass to timm for a trunk with resized patches; timm would use its own.

    Raises:
        ArgumentError: the image size fits the source's patches, but not the resized ones.
    """
    patch = resized_from(trunks().get(name, ""))
    if patch is None:
        return {}
    size = kwargs.get("img_size", cfg.input_size[1:])
    sides = to_2tuple(size or 0)
    larger = resized_input((3, *sides), patch, RESIZED)[1:]
    own_patch = kwargs.get("patch_size", RESIZED) == RESIZED and not kwargs.get("dynamic_img_size")
    if own_patch and any(side % RESIZED for side in sides) and not any(side % patch for side in sides):
        raise ArgumentError(
            f"img_size={size} is for the source's patches of {patch} pixels. Here patches have {RESIZED} pixels, so "
            f"the same grid needs img_size={larger}"
        )
    return {"patch_size": RESIZED, "img_size": cfg.input_size[1:]}


@contextmanager
def _caller_errors(name: str) -> Iterator[None]:
    """Turn timm's errors about the caller's arguments into ours, with the nearest argument name."""
    try:
        yield
    except ConvStemError:
        raise
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        known = argument_kinds(name)
        near = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(known))}"
        raise ArgumentTypeError(f"{name} takes no argument {unknown[1]!r}; {hint}") from error
    except AssertionError as error:
        raise ArgumentError(f"timm cannot build {name} with these arguments: {error}") from error
