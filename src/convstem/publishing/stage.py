"""Turns what a user has (a model, a folder, a training checkpoint) into a folder that the Hub and timm understand."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convstem.errors import ArgumentTypeError, InvalidFileError, MissingPathError
from convstem.files.checkpoint import CHECKPOINTS, open_checkpoint
from convstem.files.paths import path_errors
from convstem.hub.provenance import record
from convstem.hub.source import CARD, CONFIG, WEIGHTS
from convstem.models.twins import as_timm_model
from convstem.publishing.folder import save
from convstem.publishing.origin import history, resolve_architecture
from convstem.registry import catalog, tables
from convstem.registry.records import WeightsSpec


def stage(source: Any, folder: Path, use_ema: bool = False, arch: str | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a model into a folder; a README.md that is there comes along.

    Args:
        source: one of our models (timm or torchvision), a folder with the two files, or a checkpoint of timm's
            train.py.
        folder: where to write.
        use_ema: of a checkpoint, take the averaged weights.
        arch: of a checkpoint, its architecture, where what the checkpoint names cannot be found any more.

    Raises:
        ArgumentError: a model without weights or conv stem, or a checkpoint whose architecture cannot be found.
        ArgumentTypeError: something else was given.
        InvalidFileError: a checkpoint of another kind, or one that cannot be opened safely.
        MissingPathError: no such file, or a folder that lacks one of the two.
        UnsupportedModelError: a model or checkpoint of another architecture.
    """
    from torch import nn

    if isinstance(source, nn.Module):
        return save(as_timm_model(source), folder)
    if not isinstance(source, (str, Path)):
        raise ArgumentTypeError(f"a model, a folder or a checkpoint file is pushed; got {type(source).__name__}")
    path = Path(source)
    if path.is_dir():
        with path_errors("read", path):
            return _copy(path, folder)
    if not path.is_file():
        raise MissingPathError(f"there is no folder or checkpoint file {path}")
    if path.suffix not in CHECKPOINTS:
        raise InvalidFileError(
            f"{path.name} is not a checkpoint of timm's train.py ({', '.join(CHECKPOINTS)}); give a folder"
        )
    return save_checkpoint(path, folder, use_ema, arch)


def _copy(source: Path, folder: Path) -> None:
    missing = [name for name in (CONFIG, WEIGHTS) if not (source / name).is_file()]
    if missing:
        raise MissingPathError(f"{source} has no {' and no '.join(missing)}; a pushed folder needs both files")
    for name in (CONFIG, WEIGHTS, CARD):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def stage_embedded(entry: WeightsSpec, folder: Path) -> None:
    """Write ``config.json`` and the embedded file of a registry entry, byte for byte, as ``model.safetensors``."""
    import timm

    save(timm.create_model(entry.name, pretrained=True), folder)
    shutil.copyfile(tables.data_dir("registry") / str(entry.file), folder / WEIGHTS)


def save_checkpoint(path: Path, folder: Path, use_ema: bool, arch: str | None = None) -> None:
    """Write the model of a checkpoint of timm's train.py, with the preprocessing it was trained with."""
    import timm

    checkpoint = open_checkpoint(path)
    key = "state_dict_ema" if use_ema else "state_dict"
    if key not in checkpoint:
        has = ", ".join(sorted(k for k in checkpoint if k.startswith("state_dict"))) or "none"
        raise InvalidFileError(f"{path.name} has no {key}; the weights it has: {has}")
    state = timm.models.clean_state_dict(checkpoint[key])
    args = vars(checkpoint["args"]) if "args" in checkpoint else {}
    named = str(checkpoint.get("arch"))
    name, saved = resolve_architecture(arch or named)
    kwargs = {**saved, **(args.get("model_kwargs") or {})}
    kwargs["num_classes"] = state["head.weight"].shape[0] if "head.weight" in state else 0
    wanted = {"in_chans": args.get("in_chans"), "global_pool": args.get("gp")}
    kwargs |= {key: value for key, value in wanted.items() if value is not None and key not in kwargs}
    architecture = name if ":" not in name else ""
    kwargs.setdefault("img_size", _image_size(architecture, state, kwargs))
    model = timm.create_model(name, **kwargs)
    model.load_state_dict(state)
    record(model, history(named, args))
    save(model, folder, timm.data.resolve_data_config(args, model=model) if args else None)


def _image_size(architecture: str, state: Mapping[str, Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return the image size that a learned position embedding was made for, if it is not the architecture's."""
    spec = catalog.models().get(architecture)
    if spec is None or "pos_embed" not in state or kwargs.get("class_token") is False:
        return None
    size = math.isqrt(state["pos_embed"].shape[1] - 1) * spec.patch_size
    return None if size == spec.img_size else size
