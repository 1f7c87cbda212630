"""``features_only=True, feature_cls="pyramid"`` in ``timm.create_model``, for all the models that we build for timm."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from timm.models import get_model_traits
from torch import nn

from convstem.features.pyramid import FeaturePyramid
from convstem.upstream.private import timm_set_metadata

_Create = TypeVar("_Create", bound=Callable[..., nn.Module])

_PYRAMID_ARGS = ("out_indices", "output_fmt", "output_stride", "pyramid_blocks")

_CLASSIFIER_FIELDS = ("num_classes", "classifier", "global_pool")
"""Fields of a pretrained cfg that timm too leaves out of a feature extractor's."""


def pyramid_on_request(create: _Create) -> _Create:
    """Make a function that builds timm models answer ``features_only=True, feature_cls="pyramid"``.

    timm looks only for its own feature classes, so ours is taken out of the arguments before timm sees them.
    """

    @functools.wraps(create)
    def answer(*args: Any, **kwargs: Any) -> nn.Module:
        feature_cls = kwargs.get("feature_cls")
        if not (kwargs.get("features_only") and isinstance(feature_cls, str) and feature_cls.lower() == "pyramid"):
            return create(*args, **kwargs)
        del kwargs["features_only"], kwargs["feature_cls"]
        given = {name: kwargs.pop(name) for name in _PYRAMID_ARGS if name in kwargs}
        model = _create_for_any_size(functools.partial(create, *args), kwargs)
        pyramid = FeaturePyramid(model, **given)
        _describe(pyramid, model)
        return pyramid

    return answer  # type: ignore[return-value]  # it has the signature of `create`


def _create_for_any_size(create: Callable[..., nn.Module], kwargs: dict[str, Any]) -> nn.Module:
    """Build a model without head that takes images of any size, where its trunk can."""
    kwargs = {**kwargs, "num_classes": 0}
    if "dynamic_img_size" in kwargs:
        return create(**kwargs)
    try:
        return create(**kwargs, dynamic_img_size=True)
    except TypeError as error:  # a trunk whose positions are tied to one size, such as BEiT's
        if "dynamic_img_size" not in str(error):
            raise
        return create(**kwargs)


def _describe(pyramid: Any, model: Any) -> None:
    """Give a pyramid the metadata that timm gives its feature extractors."""
    cfg = {field: value for field, value in model.pretrained_cfg.items() if field not in _CLASSIFIER_FIELDS}
    pyramid.pretrained_cfg = pyramid.default_cfg = cfg
    traits = get_model_traits(model)
    pyramid.in_chans = traits.pop("in_chans")
    traits.pop("num_classes", None)
    timm_set_metadata(pyramid, {}, **traits)
