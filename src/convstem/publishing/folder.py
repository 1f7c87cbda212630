"""Writes a model as a folder that timm, transformers and the Hub understand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convstem.errors import ArgumentError
from convstem.files.safetensors import write_weights
from convstem.hub.config import check_ours, read_json
from convstem.hub.source import CONFIG, WEIGHTS
from convstem.upstream.private import timm_save_config


def save(model: Any, folder: Path, data_config: Mapping[str, Any] | None = None, ours: bool = True) -> None:
    """Write a timm model's weights and config.

    Args:
        model: the model, in any memory format.
        folder: where to write.
        data_config: preprocessing that differs from the model's own.
        ours: insist on an architecture of ours.

    Raises:
        ArgumentError: a model on the meta device, which has no weights.
        UnsupportedModelError: another architecture.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if ours:
        check_ours(str(cfg.get("architecture")))
    state = model.state_dict()
    empty = sorted(name for name, tensor in state.items() if tensor.is_meta)
    if empty:
        raise ArgumentError(f"the model is on the meta device and has no weights: {', '.join(empty[:3])}, ...")
    labels = cfg.get("label_names")
    root = {"label_names": list(labels)} if labels and len(labels) == model.num_classes else {}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_weights(tensors, folder / WEIGHTS)
    timm_save_config(model, str(folder / CONFIG), model_config=root, data_config=dict(data_config or {}) or None)


def finish_config(folder: Path, license: str, **extra: Any) -> dict[str, Any]:
    """Make a timm config state the licence, and readable by transformers; return what it says then.

    Args:
        folder: where ``config.json`` lies.
        license: the licence of the weights, which the card states as well.
        extra: further fields.
    """
    path = folder / CONFIG
    before = read_json(path)
    config = {**before, **extra, "pretrained_cfg": {**before["pretrained_cfg"], "license": license}}
    args = dict(before.get("model_args") or {})
    if args.pop("num_classes", None) is not None:  # stated at the root too; transformers' TimmWrapper fails on both
        config["model_args"] = args
    if config != before:
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return config
