"""Every private name of timm, torchvision and torch that we use, with its reason and possible replacement.

We use no private names of huggingface_hub. Each function imports its library when called: most callers run at the end
of one host's import and must not import the other. Models, transplants, publishing and hosts use this file, so it
imports none of them. A test fails on private names elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def timm_cfgs(architecture: str) -> Mapping[str, Any]:
    """Return timm's own pretrained cfgs of an architecture, by name with tag. Do not change them.

    Why: registration reads 391 of them whenever timm is imported. ``timm.models.get_arch_pretrained_cfgs`` deep-copies
    each: 23 ms of processor time instead of 4.
    Replacement: that function, once it is as fast or can skip the copies.
    """
    from timm.models import _registry

    return {name: _registry._model_pretrained_cfgs[name] for name in _registry._model_with_tags.get(architecture, ())}


def timm_unregister(name: str) -> None:
    """Remove an architecture and everything timm recorded about it.

    Why: a registration that fails half-way must leave timm as it was, and timm cannot unregister.
    Replacement: a public ``unregister_model``, or registration of many names at once.
    """
    from timm.models import _registry

    _registry._model_entrypoints.pop(name, None)
    _registry._clear_model_entries(name)


def timm_set_metadata(model: Any, model_args: Mapping[str, Any], **traits: Any) -> None:
    """Update a timm model's own record of its arguments and of traits such as ``first_conv``.

    Why: a transplant changes both. timm has only getters, which are used here to check the result.
    Replacement: public setters; ``update_model_args`` is one, in a private module.

    Raises:
        RuntimeError: timm now keeps them elsewhere.
    """
    from timm.models import get_model_args, get_model_traits

    model._model_args = {**getattr(model, "_model_args", {}), **model_args}
    model._traits = {**getattr(model, "_traits", {}), **traits}
    told = {**get_model_args(model), **get_model_traits(model)}
    lost = sorted(name for name, value in {**model_args, **traits}.items() if told.get(name) != value)
    if lost:
        raise RuntimeError(f"timm does not report {', '.join(lost)} of the model as it was set: fix timm_set_metadata")


def timm_feature_getter() -> type[Any]:
    """Return timm's wrapper class for models with ``features_only=True`` and ``feature_cls="getter"``.

    Why: saved weights are the wrapped model's. ``timm.models`` exports the other wrappers but not this one.
    Replacement: ``timm.models.FeatureGetterNet``.
    """
    from timm.models._features import FeatureGetterNet

    return FeatureGetterNet


def timm_save_config(model: Any, path: str, **fields: Any) -> None:
    """Write a timm model's ``config.json``; arguments as for timm's ``save_config_for_hf``.

    Why: ``timm.models.save_for_hf`` also writes the weights and fails on unusual memory formats.
    Replacement: the same function, exported by ``timm.models``.
    """
    from timm.models._hub import save_config_for_hf

    save_config_for_hf(model, path, **fields)


def torch_has_hooks(module: Any) -> bool:
    """Return whether a module has forward or backward hooks.

    Why: ``convstem.fold`` would silently change what a hook sees. torch can add and remove hooks but not list them.
    Replacement: a public way to list them.
    """
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def torch_loads_strictly() -> bool:
    """Return whether the enclosing ``load_state_dict`` call is strict. Call this from one of its hooks.

    Why: with ``strict=False`` part of a checkpoint is allowed, and a hook must not call it an error. torch passes
    ``strict=True`` to every hook, so the caller's value is read from its frame.
    Replacement: the hooks' own argument, once torch passes the caller's value.
    """
    import sys

    from torch.nn.modules import module

    # Compare by module and name, not with nn.Module's current method, which a tool may have wrapped.
    frame = sys._getframe(1)
    while frame is not None and (frame.f_globals is not vars(module) or frame.f_code.co_name != "load_state_dict"):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is None or bool(frame.f_locals["strict"])


def torch_keeps_values() -> bool:
    """Return whether modules keep the values of parameters that they are given.

    Why: accelerate's ``init_empty_weights`` moves parameters to the meta device by replacing
    ``Module.register_parameter``; the default device does not show that.
    Replacement: the default device, which ``init_empty_weights(include_buffers=True)`` sets to meta.
    """
    import torch
    from torch import nn

    probe = nn.Module()
    probe.register_parameter("weight", nn.Parameter(torch.empty(1, device="cpu")))
    return not probe.get_parameter("weight").is_meta


def torchvision_register(name: str, builder: Callable[..., Any]) -> None:
    """Register a model builder with torchvision.

    Why: ``torchvision.models.get_model`` finds registered builders; torchvision documents this for its own models only.
    Replacement: ``torchvision.models.register_model``.
    """
    from torchvision.models._api import register_model

    register_model(name)(builder)


def torchvision_unregister(name: str) -> None:
    """Remove a model builder; see ``timm_unregister``."""
    from torchvision.models._api import BUILTIN_MODELS

    BUILTIN_MODELS.pop(name, None)


def torchvision_legacy_interface(**weights: Any) -> Callable[..., Any]:
    """Return torchvision's decorator that makes a builder accept ``pretrained=True`` with a deprecation warning.

    Why: torchvision's builders have it, and its tests for builders expect it.
    Replacement: none; remove this once torchvision drops ``pretrained``.
    """
    from torchvision.models._utils import handle_legacy_interface

    return handle_legacy_interface(**weights)
