"""Every private name of timm, torchvision and torch that we use: why, and what would replace it.

huggingface_hub: none. One function each, which imports its library when it is called: most callers run at the end of
the import of one host, and must not import the other. The room is below all others because models, transplants and
publishing need it as well as the hosts; a test looks for private names anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def timm_cfgs(architecture: str) -> Mapping[str, Any]:
    """Return timm's own pretrained cfgs of an architecture by name with tag, not to be changed.

    Why: registration reads 391 of them whenever timm is imported. ``timm.models.get_arch_pretrained_cfgs`` copies each
    in depth: 23 ms of processor time instead of 4.
    Replacement: that function, once it is as fast or can leave out the copies.
    """
    from timm.models import _registry

    return {name: _registry._model_pretrained_cfgs[name] for name in _registry._model_with_tags.get(architecture, ())}


def timm_unregister(name: str) -> None:
    """Withdraw an architecture, and everything timm noted about it.

    Why: a registration that fails half-way leaves timm as it was. timm registers, and has no way back.
    Replacement: a public ``unregister_model``, or registration of many names at once.
    """
    from timm.models import _registry

    _registry._model_entrypoints.pop(name, None)
    _registry._clear_model_entries(name)


def timm_set_metadata(model: Any, model_args: Mapping[str, Any], **traits: Any) -> None:
    """Add to what a timm model says about itself: the arguments that rebuild it, and traits such as ``first_conv``.

    Why: after a transplant both have changed. timm has getters only, which tell here whether the values arrived.
    Replacement: public setters; ``update_model_args`` is one, in a private module.

    Raises:
        RuntimeError: timm keeps them elsewhere by now.
    """
    from timm.models import get_model_args, get_model_traits

    model._model_args = {**getattr(model, "_model_args", {}), **model_args}
    model._traits = {**getattr(model, "_traits", {}), **traits}
    told = {**get_model_args(model), **get_model_traits(model)}
    lost = sorted(name for name, value in {**model_args, **traits}.items() if told.get(name) != value)
    if lost:
        raise RuntimeError(f"timm does not report {', '.join(lost)} of the model as it was set: mend timm_set_metadata")


def timm_feature_getter() -> type[Any]:
    """Return the class of timm's models with ``features_only=True`` and ``feature_cls="getter"``, which wrap another.

    Why: saved weights are those of the wrapped model. ``timm.models`` exports the other wrappers, not this one.
    Replacement: ``timm.models.FeatureGetterNet``.
    """
    from timm.models._features import FeatureGetterNet

    return FeatureGetterNet


def timm_save_config(model: Any, path: str, **fields: Any) -> None:
    """Write a timm model's ``config.json``; arguments as timm's ``save_config_for_hf``.

    Why: ``timm.models.save_for_hf`` writes the weights as well, and fails on other memory formats than the usual one.
    Replacement: the function in ``timm.models``.
    """
    from timm.models._hub import save_config_for_hf

    save_config_for_hf(model, path, **fields)


def torch_has_hooks(module: Any) -> bool:
    """Return whether a module runs hooks forwards or backwards.

    Why: what a hook sees would change silently in ``convstem.fold``. torch can add and remove hooks, not list them.
    Replacement: a public way to list them.
    """
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def torch_loads_strictly() -> bool:
    """Return whether ``load_state_dict``, from whose hooks this is called, was asked for every key.

    Why: with ``strict=False`` a part of a checkpoint is right, and a hook that calls it an error stops what a plain ViT
    takes. torch passes ``strict=True`` to every hook, whatever its caller said, so its frame is looked at.
    Replacement: the argument of the hooks, once it is the caller's.
    """
    import sys

    from torch.nn.modules import module

    # By its place, not by what nn.Module has now: a tool that wraps the method leaves torch's own below its wrapper.
    frame = sys._getframe(1)
    while frame is not None and (frame.f_globals is not vars(module) or frame.f_code.co_name != "load_state_dict"):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is None or bool(frame.f_locals["strict"])


def torch_keeps_values() -> bool:
    """Return whether modules keep the values of the parameters that they are given, on whatever device.

    Why: accelerate's ``init_empty_weights`` replaces ``Module.register_parameter``, which no default device tells.
    Replacement: a default device of meta, as ``init_empty_weights(include_buffers=True)`` sets it.
    """
    import torch
    from torch import nn

    probe = nn.Module()
    probe.register_parameter("weight", nn.Parameter(torch.empty(1, device="cpu")))
    return not probe.get_parameter("weight").is_meta


def torchvision_register(name: str, builder: Callable[..., Any]) -> None:
    """Register a model builder with torchvision.

    Why: how ``torchvision.models.get_model`` finds it; torchvision documents the decorator for its own models only.
    Replacement: ``torchvision.models.register_model``.
    """
    from torchvision.models._api import register_model

    register_model(name)(builder)


def torchvision_unregister(name: str) -> None:
    """Withdraw a model builder; see ``timm_unregister``."""
    from torchvision.models._api import BUILTIN_MODELS

    BUILTIN_MODELS.pop(name, None)


def torchvision_legacy_interface(**weights: Any) -> Callable[..., Any]:
    """Return torchvision's decorator of builders that still answers ``pretrained=True``, with its deprecation warning.

    Why: torchvision's builders, and the tests that it runs on each, have it.
    Replacement: nothing, once torchvision drops ``pretrained``.
    """
    from torchvision.models._utils import handle_legacy_interface

    return handle_legacy_interface(**weights)
