"""Turns what a user has (a model, a folder, a training checkpoint) into a folder that the Hub and timm understand."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convstem import hub, registry
from convstem.configs import check_ours
from convstem.hosts import ensure_registered
from convstem.specs import WeightsSpec

CHECKPOINTS = (".pt", ".pth", ".tar")
"""Suffixes of files that timm's train.py writes."""


def stage(source: Any, folder: Path, use_ema: bool = False) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a model into a folder; a README.md that is there comes along.

    Args:
        source: one of our models (timm or torchvision), a folder with the two files, or a checkpoint of timm's
            train.py.
        folder: where to write.
        use_ema: of a checkpoint, take the averaged weights.

    Raises:
        FileNotFoundError: no such file, or a folder that lacks one of the two.
        TypeError: something else was given.
        ValueError: a model or checkpoint of another architecture, or a checkpoint that cannot be opened safely.
    """
    from torch import nn

    if isinstance(source, nn.Module):
        return save(as_timm_model(source), folder)
    if not isinstance(source, (str, Path)):
        raise TypeError(f"a model, a folder or a checkpoint file is pushed; got {type(source).__name__}")
    path = Path(source)
    if path.is_dir():
        return _copy(path, folder)
    if not path.is_file():
        raise FileNotFoundError(f"there is no folder or checkpoint file {path}")
    if path.suffix not in CHECKPOINTS:
        raise ValueError(
            f"{path.name} is not a checkpoint of timm's train.py ({', '.join(CHECKPOINTS)}); give a folder"
        )
    return save_checkpoint(path, folder, use_ema)


def _copy(source: Path, folder: Path) -> None:
    missing = [name for name in (hub.CONFIG, hub.WEIGHTS) if not (source / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{source} has no {' and no '.join(missing)}; a pushed folder needs both files")
    for name in (hub.CONFIG, hub.WEIGHTS, hub.CARD):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def stage_embedded(entry: WeightsSpec, folder: Path) -> None:
    """Write ``config.json`` and the embedded file of a registry entry, byte for byte, as ``model.safetensors``."""
    import timm

    save(timm.create_model(entry.name, pretrained=True), folder)
    shutil.copyfile(registry.data_dir("registry") / str(entry.file), folder / hub.WEIGHTS)


def save(model: Any, folder: Path, data_config: Mapping[str, Any] | None = None) -> None:
    """Write a timm model's weights and config.

    Args:
        model: the model, in any memory format.
        folder: where to write.
        data_config: preprocessing that differs from the model's own.

    Raises:
        ValueError: another architecture, or a model without storage.
    """
    from safetensors.torch import save_file
    from timm.models._hub import save_config_for_hf

    cfg = getattr(model, "pretrained_cfg", None) or {}
    check_ours(str(cfg.get("architecture")))
    state = model.state_dict()
    empty = sorted(name for name, tensor in state.items() if tensor.is_meta)
    if empty:
        raise ValueError(f"the model is on the meta device and has no weights: {', '.join(empty[:3])}, ...")
    labels = cfg.get("label_names")
    root = {"label_names": list(labels)} if labels and len(labels) == model.num_classes else {}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / hub.WEIGHTS, metadata={"format": "pt"})
    save_config_for_hf(model, str(folder / hub.CONFIG), model_config=root, data_config=dict(data_config or {}) or None)


def finish_config(folder: Path, license: str, **extra: Any) -> None:
    """Make a timm config state the licence, and readable by transformers.

    Args:
        folder: where ``config.json`` lies.
        license: the licence of the weights, which the card states as well.
        extra: further fields.
    """
    path = folder / hub.CONFIG
    before = json.loads(path.read_text(encoding="utf-8"))
    config = {**before, **extra, "pretrained_cfg": {**before["pretrained_cfg"], "license": license}}
    args = dict(before.get("model_args") or {})
    if args.pop("num_classes", None) is not None:  # stated at the root too; transformers' TimmWrapper fails on both
        config["model_args"] = args
    if config != before:
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def save_checkpoint(path: Path, folder: Path, use_ema: bool) -> None:
    """Write the model of a checkpoint of timm's train.py, with the preprocessing it was trained with."""
    import timm

    checkpoint = open_checkpoint(path)
    key = "state_dict_ema" if use_ema else "state_dict"
    if key not in checkpoint:
        has = ", ".join(sorted(k for k in checkpoint if k.startswith("state_dict"))) or "none"
        raise ValueError(f"{path.name} has no {key}; the weights it has: {has}")
    state = timm.models.clean_state_dict(checkpoint[key])
    args = vars(checkpoint["args"]) if "args" in checkpoint else {}
    architecture = str(checkpoint.get("arch")).split(".", 1)[0]
    check_ours(architecture)
    ensure_registered(architecture)
    kwargs = dict(args.get("model_kwargs") or {})
    kwargs["num_classes"] = state["head.weight"].shape[0] if "head.weight" in state else 0
    kwargs.setdefault("in_chans", args.get("in_chans"))
    kwargs.setdefault("img_size", _image_size(architecture, state, kwargs))
    kwargs.setdefault("global_pool", args.get("gp"))
    model = timm.create_model(architecture, **kwargs)
    model.load_state_dict(state)
    save(model, folder, timm.data.resolve_data_config(args, model=model) if args else None)


def open_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a training checkpoint, opened so that nothing in it can run.

    Raises:
        ValueError: it holds more than tensors and plain values, or is no checkpoint.
    """
    import pickle

    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # train.py stores its arguments in one
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path.name} cannot be opened without running code from it, so it was not: {error}"
        ) from error
    if not isinstance(checkpoint, dict) or "arch" not in checkpoint:
        raise ValueError(f"{path.name} is not a checkpoint of timm's train.py: it does not name its architecture")
    return checkpoint


def _image_size(architecture: str, state: Mapping[str, Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return the image size that a learned position embedding was made for, if it is not the architecture's."""
    spec = registry.models().get(architecture)
    if spec is None or "pos_embed" not in state or kwargs.get("class_token") is False:
        return None
    size = math.isqrt(state["pos_embed"].shape[1] - 1) * spec.patch_size
    return None if size == spec.img_size else size


def as_timm_model(model: Any) -> Any:
    """Return a timm model with the weights of one of ours, which may be torchvision's ``VisionTransformer``.

    Raises:
        ValueError: a torchvision model without conv stem, or of sizes that no architecture of ours has.
    """
    from torchvision.models import VisionTransformer

    if not isinstance(model, VisionTransformer):
        return model
    import timm

    from convstem.layouts import convert
    from convstem.stem import from_torchvision

    if not hasattr(model.conv_proj, "conv_last"):
        raise ValueError("this torchvision VisionTransformer has no conv stem; convstem.transplant gives it one")
    stem = from_torchvision(_stem_configs(model.conv_proj))
    block = model.encoder.layers[0]
    sizes = {
        "patch_size": model.patch_size,
        "embed_dim": model.hidden_dim,
        "depth": len(model.encoder.layers),
        "num_heads": block.num_heads,
        "mlp_ratio": model.mlp_dim / model.hidden_dim,
    }
    specs = [
        s for s in registry.models().values() if s.torchvision and all(getattr(s, k) == v for k, v in sizes.items())
    ]
    if not specs:
        raise ValueError(f"no architecture of ours has the sizes of this torchvision model: {sizes}")
    spec = next((s for s in specs if s.stem == stem), specs[0])
    kwargs: dict[str, Any] = {} if spec.stem == stem else dict(stem.model_args)
    if model.image_size != spec.img_size:
        kwargs["img_size"] = model.image_size
    twin = timm.create_model(spec.name, num_classes=model.heads.head.out_features, **kwargs)
    twin.load_state_dict(convert(model.state_dict(), source="torchvision", target="timm"))
    return twin


def _stem_configs(stem: Any) -> list[Any]:
    from torchvision.models.vision_transformer import ConvStemConfig

    return [
        ConvStemConfig(conv.out_channels, conv.kernel_size[0], conv.stride[0], type(norm), type(act))
        for conv, norm, act in (layer for name, layer in stem.named_children() if name != "conv_last")
    ]
