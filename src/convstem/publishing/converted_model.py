"""Builds the timm model of a converted checkpoint, every key and shape compared."""

from __future__ import annotations

from typing import Any

from torch import nn

from convstem.errors import CheckpointError
from convstem.layouts.comparison import some_of
from convstem.layouts.conversion import Converted

_ORIGIN = ("description", "file", "hf_hub_filename", "hf_hub_id", "label_names", "license", "origin_url", "paper_ids",
           "paper_name", "source", "tag", "url")  # fmt: skip
"""Fields of a pretrained cfg that belong to the registry's weights of the architecture, not to these."""


def build(converted: Converted) -> Any:
    """Return the timm model of a converted checkpoint, with its weights.

    Raises:
        CheckpointError: a key or shape is not the architecture's.
    """
    import timm

    name = converted.architecture
    model = timm.create_model(
        name,
        device="meta",
        num_classes=converted.sizes.num_classes,
        in_chans=converted.sizes.in_chans,
        pretrained_cfg=_cfg(converted),
        **converted.model_args,
    )
    _require_fit(converted, model)
    model.load_state_dict(converted.state_dict, assign=True)
    if converted.patchify:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = converted.norm_eps
    return model.eval()


def _cfg(converted: Converted) -> dict[str, Any]:
    """Return a pretrained cfg: the architecture's own, without the origin of the registry's weights."""
    from timm.models import resolve_pretrained_cfg

    own = resolve_pretrained_cfg(converted.architecture).to_dict()
    return {**{key: value for key, value in own.items() if key not in _ORIGIN}, **converted.pretrained_cfg}


def _require_fit(converted: Converted, model: nn.Module) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    actual = {key: tuple(tensor.shape) for key, tensor in converted.items()}
    findings = {
        "missing": expected.keys() - actual.keys(),
        "surplus": actual.keys() - expected.keys(),
        "of another shape": {key for key in expected.keys() & actual.keys() if expected[key] != actual[key]},
    }
    wrong = [f"{what}: {some_of(keys)}" for what, keys in findings.items() if keys]
    if wrong:
        raise CheckpointError(f"this checkpoint is not a {converted.architecture}; {'; '.join(wrong)}")
