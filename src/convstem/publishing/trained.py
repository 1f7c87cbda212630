"""Saves a checkpoint of timm's train.py as a model. Its contents are checked because it may come from anybody."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convstem.errors import ArgumentError, CheckpointError, ConvStemError, InvalidFileError
from convstem.files.checkpoint import open_checkpoint
from convstem.files.safetensors import Stored
from convstem.hub.config import SCRATCH, TRANSPLANTED, TUNED, Step, check_ours, check_stated, read_config, record, steps
from convstem.hub.limits import check_fits_header, short
from convstem.hub.read import fetch
from convstem.hub.source import CONFIG, check_repo_id, resolve, split_revision
from convstem.layouts.comparison import differences, some_of
from convstem.publishing.folder import save
from convstem.registry import catalog

_OTHER_STARTS = ("initial_checkpoint", "pretrained_path", "resume")
"""Arguments of train.py that start from weights on the trainer's machine; their origin is unknown."""

_PREPROCESSING = ("crop_mode", "crop_pct", "img_size", "in_chans", "input_size", "interpolation", "mean", "std")
"""Arguments of train.py about the training images."""


@dataclass(frozen=True)
class Built:
    """What ``timm.create_model`` builds for a checkpoint, without weights."""

    name: str
    """timm name, or ``local-dir:FOLDER`` with a config."""
    architecture: str
    """timm name without tag."""
    config: Mapping[str, Any]
    """Checked config of a folder or repository; empty for a name."""


def save_checkpoint(path: Path, folder: Path, use_ema: bool, architecture: str | None = None) -> None:
    """Write the model in a checkpoint of timm's train.py, with its training preprocessing.

    At most the config of the repository it was trained from is fetched; see ``resolve_architecture``.

    Args:
        path: the checkpoint.
        folder: where to write.
        use_ema: take the averaged weights.
        architecture: timm name or source to use, if the one it names cannot be found.

    Raises:
        ArgumentError: the repository or folder it was trained from cannot be read.
        CheckpointError: the weights do not fit the architecture.
        InvalidFileError: not a checkpoint of train.py, or impossible arguments in it.
        UnsupportedModelError: another architecture.
    """
    import timm

    checkpoint = open_checkpoint(path)
    state, args = _weights(checkpoint, path.name, use_ema), _arguments(checkpoint, path.name)
    named = str(checkpoint["arch"])
    built = resolve_architecture(architecture or named)
    kwargs = _model_args(built, args, state, path.name)
    model = timm.create_model(built.name, **kwargs)
    _load(model, state, path.name, built.architecture)
    record(model, history(named, args, built.config))
    save(model, folder, _data_config(built, args, model, path.name))


def _weights(checkpoint: Mapping[str, Any], name: str, use_ema: bool) -> dict[str, Any]:
    import timm

    key = "state_dict_ema" if use_ema else "state_dict"
    if key not in checkpoint:
        has = ", ".join(sorted(k for k in checkpoint if str(k).startswith("state_dict"))) or "none"
        raise InvalidFileError(f"{name} has no {key}; the weights it has: {has}")
    state = checkpoint[key]
    if not isinstance(state, Mapping):
        raise InvalidFileError(f"{key} of {name} is a {type(state).__name__}; expected tensors by key")
    odd = [short(str(key)) for key, value in state.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if odd:
        raise InvalidFileError(f"{key} of {name} must hold tensors by key; {some_of(odd)} is not one")
    return dict(timm.models.clean_state_dict(dict(state)))


def _arguments(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return train.py's arguments; empty if the checkpoint has none."""
    given = checkpoint.get("args")
    args = given if isinstance(given, Mapping) else getattr(given, "__dict__", None)
    if given is not None and args is None:
        raise InvalidFileError(f"args of {name} are a {type(given).__name__}; train.py keeps them in a Namespace")
    return dict(args or {})


def _model_args(built: Built, args: Mapping[str, Any], state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the model's arguments, checked like those of a saved model's config."""
    given = args.get("model_kwargs") or {}
    if not isinstance(given, Mapping):
        raise InvalidFileError(f"model_kwargs of {name} are a {type(given).__name__}; expected arguments by name")
    kwargs = {**(built.config.get("model_args") or {}), **given}
    head = state.get("head.weight")
    kwargs["num_classes"] = 0 if head is None else (list(head.shape) or [1])[0]
    wanted = {"in_chans": args.get("in_chans"), "global_pool": args.get("gp")}
    kwargs |= {key: value for key, value in wanted.items() if value is not None and key not in kwargs}
    with _said_by(name):
        check_stated(built.architecture, {}, kwargs)
        check_fits_header(kwargs, {}, {key: Stored(tuple(t.shape), t.is_floating_point()) for key, t in state.items()})
    kwargs.setdefault("img_size", _image_size("" if built.config else built.architecture, state, kwargs))
    return kwargs


@contextmanager
def _said_by(name: str) -> Iterator[None]:
    """Make errors about a config blame the checkpoint instead."""
    try:
        yield
    except InvalidFileError as error:
        raise InvalidFileError(f"the arguments in {name}: {str(error).removeprefix('config.json: ')}") from error


def _image_size(architecture: str, state: Mapping[str, Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return the image size of a learned position embedding, or None if it is the architecture's."""
    spec = catalog.models().get(architecture)
    shape: Sequence[int] = state["pos_embed"].shape if "pos_embed" in state else ()
    if spec is None or len(shape) != 3 or kwargs.get("class_token") is False:
        return None
    size = math.isqrt(max(shape[1] - 1, 0)) * (kwargs.get("stride") or spec.patch_size)
    return None if size == spec.img_size else size


def _load(model: Any, state: Mapping[str, Any], name: str, architecture: str) -> None:
    try:
        model.load_state_dict(state)
    except ConvStemError:
        raise
    except RuntimeError as error:
        wrong = differences(state, model.state_dict()) or error
        raise CheckpointError(f"the weights in {name} do not fit {architecture}: {wrong}") from error


def _data_config(built: Built, args: Mapping[str, Any], model: Any, name: str) -> dict[str, Any] | None:
    """Return the preprocessing that timm resolves from train.py's arguments; None without arguments."""
    import timm

    if not args:
        return None
    known = {key: args[key] for key in _PREPROCESSING if args.get(key) is not None}
    try:
        found = timm.data.resolve_data_config(known, model=model)
    except (AssertionError, TypeError) as error:
        raise InvalidFileError(f"the arguments in {name} describe no images: {known}") from error
    with _said_by(name):
        check_stated(built.architecture, found, {})
    return dict(found)


def resolve_architecture(arch: str) -> Built:
    """Return what ``timm.create_model`` builds for a checkpoint's architecture.

    Args:
        arch: value of ``--model``: timm name with or without tag, ``hf-hub:org/name`` or ``local-dir:folder``.

    Raises:
        ArgumentError: the repository or folder cannot be read; the message has the remedy.
        UnsupportedModelError: another architecture.
    """
    if ":" not in arch:
        name = arch.partition(".")[0]
        check_ours(name)
        return Built(name, name, {})
    try:
        folder = config_folder(arch)
        config = read_config(folder / CONFIG)
    except ConvStemError as error:
        raise ArgumentError(
            f"the checkpoint was trained from {arch}, which can no longer be read ({error}); name its architecture "
            "with architecture=NAME (--architecture NAME on the command line), or another copy of the same model"
        ) from error
    return Built(f"local-dir:{folder}", config["architecture"], config)


def config_folder(arch: str) -> Path:
    """Return the folder with the config of ``hf-hub:org/name`` or ``local-dir:FOLDER``.

    Raises:
        ArgumentError: another scheme.
        HubError: the repository cannot be read.
    """
    found = resolve(arch, disk=False)
    return found.path if found.kind == "folder" else fetch(found.repo_id, CONFIG, found.revision).path.parent


def history(arch: str, args: Mapping[str, Any], config: Mapping[str, Any]) -> list[Step]:
    """Return the known steps in a checkpoint's history: the weights it started from, and training.

    Args:
        arch: value of ``--model``.
        args: train.py's arguments; empty if the checkpoint has none.
        config: config of ``arch``, if read from a folder or repository.
    """
    if not args or any(args.get(name) for name in _OTHER_STARTS):
        return []
    if not args.get("pretrained"):
        return [Step(SCRATCH)]
    kind, _, place = arch.partition(":")
    if not place:
        return _from_tag(arch)
    earlier = steps(config["pretrained_cfg"]) if config else ()
    return [*earlier, Step(TUNED, place if kind != "local-dir" and _is_repository(place) else "")]


def _is_repository(place: str) -> bool:
    try:
        check_repo_id(split_revision(place)[0])
    except ArgumentError:
        return False
    return True


def _from_tag(arch: str) -> list[Step]:
    import timm

    try:
        cfg = timm.get_pretrained_cfg(arch)
    except RuntimeError:  # no such tag
        return []
    entry = catalog.weights().get(f"{arch.partition('.')[0]}.{cfg.tag}") if cfg else None
    if cfg is None or not (cfg.hf_hub_id or entry):
        return []
    if cfg.hf_hub_id and (entry is None or entry.transform == "transplant"):
        return [Step(TRANSPLANTED, cfg.hf_hub_id), Step(TUNED, arch)]
    return [Step(TUNED, cfg.hf_hub_id or arch)]
