"""The timm model that a user names; what timm or the Hub says against it becomes one of our errors."""

from __future__ import annotations

import difflib
from pathlib import Path

import timm
from timm.models import parse_model_name, resolve_pretrained_cfg, split_model_name_tag
from torch import nn

from convstem.errors import ArgumentError, CheckpointError, ConvStemError, MissingPathError, UnknownModelError
from convstem.hub.errors import explain, root_cause
from convstem.hub.names import CONFIG


def create_source(name: str, pretrained: bool = True) -> nn.Module:
    """Return a timm model in eval mode.

    Args:
        name: timm name with or without tag, ``hf-hub:org/name`` or ``local-dir:folder``.
        pretrained: load its weights.

    Raises:
        ArgumentError: no such kind of name, or a model without pretrained weights.
        CheckpointError: the repository or folder does not hold a model that timm can load.
        HubError: the weights cannot be had from the Hub.
        MissingPathError: no such folder, or one without a config.
        UnknownModelError: unknown name or tag; the message lists the nearest names, or the tags.
    """
    try:
        kind, place = parse_model_name(name)
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    if kind is None:
        where = _check_name(place, pretrained)
    elif kind == "local-dir" and not (Path(place) / CONFIG).is_file():
        raise MissingPathError(f"{place} is not the folder of a timm model: it has no {CONFIG}")
    else:
        where = place
    try:
        return timm.create_model(name, pretrained=pretrained).eval()
    except ConvStemError:
        raise
    except OSError as error:
        raise explain(root_cause(error), where, None) from error
    except RuntimeError as error:
        if kind is None:
            raise
        raise CheckpointError(f"timm cannot load {name}: {error}") from error


def _check_name(name: str, pretrained: bool) -> str:
    """Return where the weights of a name in timm's registry are; raise unless there are such a name and weights."""
    base, tag = split_model_name_tag(name)
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(sorted(near))}?" if near else "timm.list_models() lists all names"
        raise UnknownModelError(f"timm has no model {base!r}; {hint}")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{base}.*", pretrained=True)]
    if tag and tag not in tags:
        raise UnknownModelError(f"timm's {base} has no pretrained tag {tag!r}; it has {', '.join(sorted(tags)) or '-'}")
    cfg = resolve_pretrained_cfg(base, tag)
    if pretrained and not cfg.has_weights:
        raise ArgumentError(
            f"timm has no pretrained weights of {base}: choose a name of timm.list_models(pretrained=True), or pass "
            "pretrained=False for random ones"
        )
    return str(cfg.hf_hub_id or cfg.url or base)
