"""Writes a model as a folder that timm, transformers and the Hub understand; builds the model of such a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from convstem.errors import ArgumentError, InvalidFileError, UnsupportedModelError
from convstem.files.paths import path_errors
from convstem.files.safetensors import write_weights
from convstem.files.staging import check_free, replacing
from convstem.hub.config import check_ours, read_json
from convstem.hub.source import CARD, CONFIG, FILES, WEIGHTS, Source
from convstem.publishing.same import epsilon_of, require_same
from convstem.registry import tables
from convstem.registry.records import WeightsSpec
from convstem.upstream.private import timm_save_config

_Result = TypeVar("_Result")


def write_folder(folder: Path, write: Callable[[Path], _Result], overwrite: bool = False) -> _Result:
    """Write a model's files into a folder, all of them or none; files with the same content already are not touched.

    Args:
        folder: created if needed.
        write: writes the files into the empty folder that it is given; what it returns is returned.
        overwrite: replace the model that is there.

    Raises:
        ExistingPathError: the folder has other files of these names; nothing was changed.
        PathError: the folder cannot be written; nothing was changed.
    """
    pair = (CONFIG, WEIGHTS)
    with path_errors("write", folder), replacing(folder, CONFIG, pair, overwrite) as staged:
        return write(staged)


def check_new(folder: Path, source: Source, overwrite: bool = False, names: Collection[str] = FILES) -> None:
    """Refuse a folder for a model that is yet to be made of a source, before the work begins.

    Args:
        folder: where the model is to be written.
        source: what it is to be made of.
        overwrite: replace the model that is there.
        names: the files that are to be written.

    Raises:
        ArgumentError: it is the folder of the source.
        ExistingPathError: it has a model's files already.
    """
    places = [folder] if source.kind == "folder" else [folder / name for name in FILES if source.kind == "file"]
    with path_errors("write", folder):
        if any(place.exists() and place.samefile(source.path) for place in places):
            raise ArgumentError(f"{folder} is where the source lies: name another folder to write")
        check_free(folder, names, overwrite)


def save(
    model: Any,
    folder: Path,
    data_config: Mapping[str, Any] | None = None,
    ours: bool = True,
    original: nn.Module | None = None,
) -> None:
    """Write a timm model's weights and config; one of ours is read back, and must compute the same.

    Args:
        model: the model, in any memory format.
        folder: where to write.
        data_config: preprocessing that differs from the model's own.
        ours: insist on an architecture of ours.
        original: what the model was made of, if it was another host's.

    Raises:
        ArgumentError: a model on the meta device, which has no weights, or one that computes something else than what
            would be read back.
        UnsupportedModelError: another architecture, or a quantised model.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if ours:
        check_ours(str(cfg.get("architecture")))
    state = model.state_dict()
    odd = sorted(name for name, value in state.items() if not isinstance(value, Tensor) or value.is_quantized)
    if odd:
        raise UnsupportedModelError(
            f"the model is quantised: {', '.join(odd[:3])}, ... are no plain tensors, and neither host could load "
            "them; save the model that it was made from"
        )
    empty = sorted(name for name, tensor in state.items() if tensor.is_meta)
    if empty:
        raise ArgumentError(f"the model is on the meta device and has no weights: {', '.join(empty[:3])}, ...")
    labels = cfg.get("label_names")
    root = {"label_names": list(labels)} if labels and len(labels) == model.num_classes else {}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_weights(tensors, folder / WEIGHTS)
    data = dict(data_config or {}) or None
    timm_save_config(model, str(folder / CONFIG), model_config=root, model_args=_sayable(model), data_config=data)
    if ours:
        require_same(model, folder, original)


def _sayable(model: Any) -> dict[str, Any]:
    """Return what stands in a config for the arguments of a model that it cannot hold: norm layers with an epsilon.

    Raises:
        ArgumentError: another argument that is no plain value.
    """
    from timm.models import get_model_args

    unsayable = {name: value for name, value in get_model_args(model).items() if not _is_plain(value)}
    epsilon = epsilon_of(model)
    if "norm_layer" in unsayable and epsilon:
        del unsayable["norm_layer"]
        return {"norm_layer": None, "norm_eps": epsilon} if not unsayable else _refused(unsayable)
    return _refused(unsayable) if unsayable else {}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _refused(arguments: Mapping[str, Any]) -> Any:
    said = ", ".join(f"{name}={value!r}" for name, value in sorted(arguments.items()))
    raise ArgumentError(
        f"a config holds numbers, text and lists, and this model was built with {said}: build it with names instead, "
        "such as act_layer='gelu'; a SwiGLU MLP is that of vit_giant_patch14_dinov2 and vit_giant_patch14_reg4_dinov2, "
        "which take your sizes as arguments"
    )


def save_embedded(entry: WeightsSpec, folder: Path) -> None:
    """Write ``config.json`` and the embedded file of a registry entry, byte for byte, as ``model.safetensors``."""
    import timm

    save(timm.create_model(entry.name, pretrained=True), folder)
    shutil.copyfile(tables.data_dir("registry") / str(entry.file), folder / WEIGHTS)


def finish(
    folder: Path, license: str, card: Callable[[dict[str, Any]], str] | None = None, **extra: Any
) -> dict[str, Any]:
    """Make a timm config state the licence, and readable by transformers; write the card; return the config.

    Args:
        folder: where ``config.json`` lies.
        license: the licence of the weights, which the card states as well.
        card: makes the card of the config; None leaves it to the caller.
        extra: further fields of the config.
    """
    path = folder / CONFIG
    before = read_json(path)
    config = {**before, **extra, "pretrained_cfg": {**before["pretrained_cfg"], "license": license}}
    args = dict(before.get("model_args") or {})
    if args.pop("num_classes", None) is not None:  # stated at the root too; transformers' TimmWrapper fails on both
        config["model_args"] = args
    if config != before:
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    if card:
        (folder / CARD).write_text(card(config), encoding="utf-8")
    return config


def meta_model(folder: Path) -> Any:
    """Return the model of a folder on the meta device, its config resolved by timm and an image passed through it.

    Raises:
        InvalidFileError: the config describes no model, or one that cannot take the images that it describes.
    """
    import timm
    import torch

    model = timm.create_model(f"local-dir:{folder}", device="meta").eval()
    size = model.pretrained_cfg["input_size"]
    try:
        model(torch.empty(1, *size, device="meta"))
    except Exception as error:  # whatever timm and torch say of such an image
        raise InvalidFileError(
            f"config.json describes a model that cannot take images of its input_size {list(size)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return model
