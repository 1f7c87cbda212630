"""Identifies a wrong checkpoint by its keys and shapes, so that errors name it instead of listing keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from convstem.errors import CheckpointError, ConversionError, warn
from convstem.layouts.comparison import differences, some_of
from convstem.layouts.engine import to_timm
from convstem.layouts.recognise import LAYOUTS, recognise
from convstem.layouts.timm import PATCH_WEIGHT, STEM_START
from convstem.layouts.unwrap import unwrap
from convstem.upstream import torch_loads_strictly

if TYPE_CHECKING:
    from torch import nn

# Keys that may differ along with a new classifier: another pooling moves the norm, or pools by attention.
_POOLING = ("attn_pool.", "fc_norm.", "norm.")


def _explain(state_dict: Mapping[str, Any], own: Mapping[str, Any], layout: str) -> list[str]:
    """Return a sentence naming the kind of checkpoint, or an empty list if it fits or cannot be identified.

    Args:
        state_dict: the checkpoint.
        own: the state dict of one of our models.
        layout: the model's layout, ``timm`` or ``torchvision``.
    """
    integers = _integers(state_dict, own)
    if integers:
        return [
            f"this checkpoint holds integers where the model has floating-point numbers: {some_of(integers)}. A "
            "quantised checkpoint has to be converted back first."
        ]
    if {k: v.shape for k, v in own.items()} == {k: getattr(v, "shape", None) for k, v in state_dict.items()}:
        return []  # the fast path of every good load
    if getattr(recognise(own).layout, "name", None) != layout:
        return []  # a trunk outside our layouts, such as BEiT
    stranger = _stranger(state_dict, layout)
    if stranger:
        return [stranger]
    actual, expected = _patch_embedding(state_dict, layout), _patch_embedding(own, layout)
    if PATCH_WEIGHT in actual and not any(key.startswith(STEM_START) for key in actual):
        return []  # the stem converts a patch embedding itself, or says why it cannot
    if actual and _channels(actual) != _channels(expected):
        return [
            f"this checkpoint has another stem: its conv channels are {_channels(actual)}, the model's are "
            f"{_channels(expected)}. Create the model with the checkpoint's stem_channels and stem_strides."
        ]
    return []


def explain_on_load(layout: str) -> Callable[..., None]:
    """Return a hook for ``register_load_state_dict_pre_hook`` that adds this sentence to torch's errors."""
    return partial(_explain_on_load, layout)


def _explain_on_load(
    layout: str, model: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: Any
) -> None:
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    own = _tensors(model)
    if torch_loads_strictly() or _contradicts(given, own):  # a non-strict load may bring part of a checkpoint
        lists[-1].extend(_explain(given, own, layout))  # the last list is error_msgs
    elif given and own.keys().isdisjoint(given):
        for sentence in _explain(given, own, layout):
            warn(f"no key of this state dict belongs to the model: {sentence}")


def _contradicts(state_dict: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Return whether a state dict has one of the model's tensors in another shape or as integers."""
    shapes = {key: getattr(value, "shape", None) for key, value in state_dict.items() if key in own}
    return any(shape != own[key].shape for key, shape in shapes.items()) or bool(_integers(state_dict, own))


def _stranger(state_dict: Mapping[str, Any], layout: str) -> str:
    """Return what a checkpoint of another layout is and how to convert it; empty if it has the model's layout."""
    try:
        found = recognise(unwrap(state_dict).state_dict)
    except ConversionError as error:
        return f"this checkpoint cannot be loaded: {error}."
    if found.layout is None:
        return f"this is {found.foreign}." if found.foreign else ""
    if found.layout.name == layout:
        return ""
    return (
        f"this is {found.layout.title}, but the model has the layout {layout!r}: `convstem convert FILE --out FOLDER` "
        f"makes a folder that loads, convstem.convert(state_dict, source={found.layout.name!r}, target={layout!r}) a "
        "state dict."
    )


def check_checkpoint(state_dict: Mapping[str, Any], model: Any) -> None:
    """Check a pretrained checkpoint against one of our timm models before loading.

    Other input channels and a new classifier are allowed, as in timm. Unlike timm, everything else is still checked
    strictly when the classifier is new.

    Args:
        state_dict: the checkpoint, in timm's layout and with our stem.
        model: the model, with its ``pretrained_cfg``.

    Raises:
        CheckpointError: tensors are missing, surplus or misshapen.
    """
    cfg, own = model.pretrained_cfg, _tensors(model)
    free: tuple[str, ...] = ()
    if getattr(model, "num_classes", 0) != cfg["num_classes"]:
        heads = cfg["classifier"] or ()
        names = [heads] if isinstance(heads, str) else heads
        free = (*(f"{head}." for head in names), *_free_pooling(state_dict, own))
    first, adapted = f"{cfg['first_conv']}.weight", dict(state_dict)
    if first in adapted and first in own and adapted[first].shape[:1] == own[first].shape[:1]:
        adapted[first] = own[first]  # timm checks and adapts the input channels
    wrong = differences(adapted, own, free)
    if wrong:
        why = [wrong, *_explain(state_dict, own, "timm")]
        raise CheckpointError(f"these weights do not fit {cfg.get('architecture', 'the model')}. {'. '.join(why)}")


def _free_pooling(state_dict: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the prefixes of keys that depend on pooling; none if file and model pool alike."""
    file, model = (
        {start for start in _POOLING if any(key.startswith(start) for key in keys)} for keys in (state_dict, own)
    )
    return _POOLING if file and file != model else ()


def _tensors(model: nn.Module) -> dict[str, Any]:
    return model.state_dict(keep_vars=True)  # detaching would trigger deferred initialisation of every parameter


def _integers(state_dict: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the keys whose integers torch would silently convert to floating point."""
    return [
        key
        for key, tensor in state_dict.items()
        if key in own and own[key].is_floating_point() and hasattr(tensor, "dtype") and not tensor.is_floating_point()
    ]


def _patch_embedding(state_dict: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Return the tensors of the patch embedding under timm's keys."""
    prefix = {"timm": "patch_embed.", "torchvision": "conv_proj."}[layout]
    embedding = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    try:
        return to_timm(embedding, LAYOUTS[layout], complete=False)[0].state_dict
    except ConversionError:
        return {}  # an unknown patch embedding: torch's list of keys says more


def patchify_sentence(weight: Any) -> str:
    """Return the sentence for a patch embedding's weight [embed_dim, channels, patch, patch] loaded into a stem."""
    size = f"{weight.shape[-2]}x{weight.shape[-1]} patches" if weight.ndim == 4 else "patches"
    return (
        f"this is the checkpoint of a plain (patchify) ViT: it embeds {size} directly, but this model has a conv stem. "
        "Convert it with convstem.transplant, or load it into the patchify architecture it was made for."
    )


def _channels(embedding: Mapping[str, Any]) -> list[int]:
    return [len(tensor) for key, tensor in embedding.items() if key.endswith("conv.weight") and tensor.ndim]
