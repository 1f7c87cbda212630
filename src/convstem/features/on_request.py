"""``features_only=True, feature_cls="pyramid"`` in ``timm.create_model``, for all the models that we build for timm."""

from typing import Any

from timm.models import get_model_traits
from torch import nn

from convstem.features.pyramid import FeaturePyramid
from convstem.upstream.private import timm_set_metadata

_PYRAMID_ARGS = ("out_indices", "output_fmt", "output_stride", "pyramid_blocks")

_CLASSIFIER_FIELDS = ("num_classes", "classifier", "global_pool")
"""Fields of a pretrained cfg that timm too leaves out of a feature extractor's."""


def take_pyramid(kwargs: dict[str, Any], any_size: bool) -> dict[str, Any] | None:
    """Take the arguments of a feature pyramid out of an entrypoint's; None if no pyramid is asked for.

    timm looks only for its own feature classes, so ours must not reach it. What is left asks for a model without head
    that takes images of any size, where its trunk can.

    Args:
        kwargs: of the entrypoint, changed in place.
        any_size: whether the trunk takes ``dynamic_img_size``; one whose positions are tied to a size does not.
    """
    feature_cls = kwargs.get("feature_cls")
    if not (kwargs.get("features_only") and isinstance(feature_cls, str) and feature_cls.lower() == "pyramid"):
        return None
    del kwargs["features_only"], kwargs["feature_cls"]
    given = {name: kwargs.pop(name) for name in _PYRAMID_ARGS if name in kwargs}
    kwargs["num_classes"] = 0
    if any_size:
        kwargs.setdefault("dynamic_img_size", True)
    return given


def as_pyramid(model: Any, given: dict[str, Any]) -> nn.Module:
    """Return the feature pyramid of a model, with the metadata that timm gives its feature extractors.

    Args:
        model: one of our timm models.
        given: what ``take_pyramid`` took.
    """
    pyramid: Any = FeaturePyramid(model, **given)
    cfg = {field: value for field, value in model.pretrained_cfg.items() if field not in _CLASSIFIER_FIELDS}
    pyramid.pretrained_cfg = pyramid.default_cfg = cfg
    traits = get_model_traits(model)
    pyramid.in_chans = traits.pop("in_chans")
    traits.pop("num_classes", None)
    timm_set_metadata(pyramid, {}, **traits)
    return pyramid  # type: ignore[no-any-return]
