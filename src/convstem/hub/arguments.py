"""``model_args`` of a config: the arguments that timm's model class takes, by its annotations, and our own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from convstem.errors import InvalidFileError
from convstem.hub.kinds import check_kinds
from convstem.registry.names import trunks
from convstem.registry.stem_spec import StemSpec

_STEM: dict[str, Any] = {
    **{f"stem_{name}": kind for name, kind in get_type_hints(StemSpec).items()},
    "norm_eps": float | None,
}
"""Arguments that every name of ours takes beyond those of its trunk."""


_EXTRACTOR: dict[str, Any] = {
    "feature_cls": str,
    "features_only": bool,
    "out_indices": int | list[int],
    "output_fmt": str,
    "output_stride": int,
    "pyramid_blocks": int | list[int],
}
"""Arguments that are part of a saved feature extractor, timm's or our pyramid."""


_NOT_IN_FILES = ("args", "device", "dtype", "kwargs", "return")
"""Names among a constructor's annotations that are no argument, or none that belongs to a saved model."""


def check_arguments(architecture: str, args: Mapping[str, Any]) -> None:
    """Raise ``InvalidFileError`` unless timm's model takes all these arguments, and of these types.

    Args:
        architecture: timm name.
        args: ``model_args`` of a config.
    """
    known = argument_kinds(architecture)
    unknown = sorted(set(args) - set(known))
    if unknown:
        raise InvalidFileError(
            f"config.json: unknown model_args {', '.join(unknown)}; {architecture} has {', '.join(sorted(known))}"
        )
    check_kinds(args, known)


@cache
def argument_kinds(architecture: str) -> Mapping[str, Any]:
    """Return the arguments that a config can hold for a timm name, with their annotations."""
    from timm.models import VisionTransformer, model_entrypoint
    from torch import nn

    named = get_type_hints(model_entrypoint(trunks().get(architecture, architecture))).get("return")
    model: type = VisionTransformer  # our own families' functions name no class
    if isinstance(named, type) and issubclass(named, nn.Module):
        model = named
    kinds: dict[str, Any] = {}
    for cls in reversed(model.__mro__[:-1]):
        kinds |= get_type_hints(vars(cls).get("__init__", object.__init__))
    return {name: kind for name, kind in (kinds | _STEM | _EXTRACTOR).items() if name not in _NOT_IN_FILES}
