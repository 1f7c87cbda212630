"""The fast path of ``timm.create_model(..., pretrained=True)``: a verified file, mapped, becomes the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from timm.models import PretrainedCfg, resolve_pretrained_cfg
from timm.models._hub import hf_split
from torch import nn

from convstem.errors import HubError
from convstem.files.safetensors import check_weights
from convstem.hub.names import CONFIG, WEIGHTS
from convstem.hub.read import cached_commit, fetch, fetch_all
from convstem.registry import tables
from convstem.weights.deferred import DeferredInit, off_meta

_LOCATION = ("file", "hf_hub_filename", "hf_hub_id", "source", "url")
"""Fields of a pretrained cfg that say where the weights are."""


# Weights under a pickle's name, which timm too looks for under a safe one first.
_SAFE_NAMES = {
    None: WEIGHTS,
    "pytorch_model.bin": WEIGHTS,
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}


@dataclass(frozen=True)
class Located:
    """A weights file on this machine."""

    path: Path
    immutable: bool
    """Nobody writes to it in place: it is in the Hub's cache or in this package, so parameters can share its memory."""


def build_pretrained(
    build: Callable[..., nn.Module],
    name: str,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a pretrained timm model without initialising or copying what its weights file holds.

    Args:
        build: takes ``pretrained``, ``pretrained_cfg``, ``cache_dir`` and ``kwargs``, as ``build_model_with_cfg`` does.
        name: timm name of the architecture.
        pretrained_cfg, pretrained_cfg_overlay, cache_dir: see ``timm.create_model``.
        kwargs: passed to ``build``.

    Raises:
        HubError: the weights cannot be had from the Hub.
        CheckpointError: the weights do not fit the architecture.
        ValueError: the file is damaged or holds NaN or Inf.
    """
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, dict(pretrained_cfg_overlay or {}))
    located = locate(cfg, cache_dir)
    plan = cfg
    if located:
        check_weights(located.path)  # before anything is built
        nowhere: dict[str, Any] = dict.fromkeys(_LOCATION)
        plan = replace(cfg, **nowhere | {"file": str(located.path), "custom_load": False})
    with off_meta(kwargs), DeferredInit(adopt=bool(located and located.immutable)):
        model = build(pretrained=True, pretrained_cfg=plan, cache_dir=cache_dir, **kwargs)
    _restore_location(model.pretrained_cfg, cfg)
    return model


def locate(cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Located | None:
    """Return the local safetensors file a pretrained cfg means, fetched and verified if it is on the Hub.

    None where the cfg names something else (a URL, a folder, a state dict, a pickle): timm then loads it.

    Raises:
        HubError: the file cannot be had from the Hub.
        ValueError: the Hub file asked for is not a safetensors file.
    """
    if cfg.source != "hf-hub" and (cfg.state_dict or cfg.file):
        return _local(cfg)
    if not cfg.hf_hub_id or cfg.custom_load == "hf":
        return None
    repository, revision = hf_split(cfg.hf_hub_id)
    filename = _SAFE_NAMES.get(cfg.hf_hub_filename, cfg.hf_hub_filename)
    if cfg.source == "hf-hub":
        path = _beside_config(repository, revision, filename, cache_dir)
    else:
        path = fetch(repository, filename, revision, cache_dir=cache_dir).path
    return Located(path, immutable=True)


def _beside_config(repository: str, revision: str | None, filename: str, cache_dir: str | Path | None) -> Path:
    """Return the weights of the commit whose config timm has just fetched and read, once that is verified too."""
    commit = cached_commit(repository, revision, cache_dir)
    if commit is None:
        return fetch(repository, filename, revision, cache_dir=cache_dir).path
    config = Path(str(try_to_load_from_cache(repository, CONFIG, cache_dir=cache_dir, revision=commit)))
    read = config.read_bytes()
    files = fetch_all(repository, [CONFIG, filename], commit, cache_dir=cache_dir)
    if files[CONFIG].path.read_bytes() != read:
        raise HubError(
            f"{CONFIG} of {repository} was damaged in the cache when timm read it; it has been fetched again and "
            "is right now: make the same call once more"
        )
    return files[filename].path


def _local(cfg: PretrainedCfg) -> Located | None:
    path = Path(str(cfg.file))
    if cfg.source == "local-dir":
        path /= WEIGHTS
        return Located(path, immutable=False) if path.exists() else None
    if cfg.state_dict or path.suffix != ".safetensors":
        return None
    return Located(path, immutable=path.is_relative_to(tables.data_dir("registry")))


def _restore_location(stored: Any, cfg: PretrainedCfg) -> None:
    """Make a model's pretrained cfg say again where its weights are for everyone, not on this machine."""
    for field in _LOCATION:
        stored.pop(field, None)
        if getattr(cfg, field) is not None:
            stored[field] = getattr(cfg, field)
