"""Writes a model as a folder for timm, transformers and the Hub, and builds the model of such a folder.

A config cannot express everything about a module, so the written model is read back and its outputs are compared.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from convstem.errors import ArgumentError, ConvStemError, InvalidFileError, UnsupportedModelError
from convstem.files.paths import path_errors
from convstem.files.safetensors import ALLOW_NONFINITE, write_weights
from convstem.files.staging import check_free, replacing
from convstem.hub.config import check_ours, read_json
from convstem.hub.source import CARD, CONFIG, FILES, WEIGHTS, Source
from convstem.layouts.comparison import some_of
from convstem.registry import tables
from convstem.registry.records import WeightsSpec
from convstem.upstream import timm_save_config, torch_has_hooks

_progress = logging.getLogger("convstem.progress")

TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-7}
"""Parameter dtype -> largest relative difference of outputs computed in float64."""

HALF_TOLERANCE = 3e-2
"""The same for half precision, where computed buffers are rounded too."""

LARGEST_DOUBLE = 1 << 29
"""Most parameters of a model compared in float64. Larger ones are compared as they are, within ``LARGE_TOLERANCE``."""

LARGE_TOLERANCE = 1e-4
"""Also for a model that cannot be copied, or with replaced ``forward`` methods, which a copy would share."""


@torch.no_grad()
def require_same(model: nn.Module, folder: Path, original: nn.Module | None = None) -> None:
    """Compare a model with the one read back from its folder, on a seeded image.

    If the trunk's LayerNorms share an epsilon that differs from the config's, it is first written into the config.

    Args:
        model: one of our timm models, as it was written.
        folder: has ``config.json`` and ``model.safetensors``.
        original: the model to match, if ``model`` was made from another host's.

    Raises:
        ArgumentError: the outputs differ; the message names the modules that differ from the config's.
        UnsupportedModelError: the model cannot take images of its input size.
    """
    back = _read(folder)
    if (epsilon := epsilon_of(model)) is not None and epsilon_of(back) not in (None, epsilon):
        back = _with_epsilon(folder, epsilon, back)
    error, tolerance = _difference(original or model, back)
    if error > tolerance:
        found = list(_unlike(model, back)) or ["all modules have the same description"]
        raise ArgumentError(
            f"the saved model would give other outputs (relative difference {error:.1e} on an image): "
            f"{some_of(found)}. A config cannot say this: build the model with the arguments it needs, or undo the "
            "change"
        )


def _read(folder: Path) -> nn.Module:
    """Return a folder's model in float32. NaN and Inf are allowed here; other checks find them."""
    import timm

    allowed = ALLOW_NONFINITE.set(True)
    try:
        with torch.device("cpu"):
            return timm.create_model(f"local-dir:{folder}", pretrained=True, dtype=torch.float32)
    finally:
        ALLOW_NONFINITE.reset(allowed)


def epsilon_of(model: nn.Module) -> float | None:
    """Return the epsilon of the trunk's LayerNorms, or None if they differ."""
    found = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm) and _is_trunks(module)}
    return found.pop() if len(found) == 1 else None


def _is_trunks(norm: nn.Module) -> bool:
    return not type(norm).__name__.endswith("2d")  # the stem's LayerNorm2d


def _with_epsilon(folder: Path, epsilon: float, back: nn.Module) -> nn.Module:
    """Write an epsilon into a config and return the model read from it. Undo that if the trunk takes no epsilon."""
    path = folder / CONFIG
    config = read_json(path)
    before = path.read_text(encoding="utf-8")
    config["model_args"] = {**(config.get("model_args") or {}), "norm_eps": epsilon}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    try:
        return _read(folder)
    except ConvStemError:
        path.write_text(before, encoding="utf-8")
        return back


def _difference(model: nn.Module, back: Any) -> tuple[float, float]:
    """Return the relative difference of two models' outputs on a seeded image, and the tolerance."""
    image = torch.randn(1, *back.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0), device="cpu")
    types = {parameter.dtype for parameter in model.parameters()}
    tolerance = max([TOLERANCE.get(dtype, HALF_TOLERANCE) for dtype in types], default=0.0)
    copied = _in_double(model)
    first = model if copied is None else copied
    place = next(first.parameters())
    with _evaluating(first), torch.device(place.device):  # the device for tensors created during forward
        image, back = image.to(place), back.to(place).eval()
        try:
            expected = list(_tensors(first(image)))
        except Exception as error:  # foreign modules may raise anything
            raise UnsupportedModelError(
                f"the model cannot take images of {list(image.shape[1:])}, its input_size "
                f"({type(error).__name__}: {error})"
            ) from error
        actual = list(_tensors(back(image)))
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return float("inf"), tolerance
    differences = [float((a - e).norm() / (e.norm() or 1)) for a, e in zip(actual, expected, strict=True)]
    finite = [value for value in differences if value == value]  # NaN in weights is reported elsewhere
    return max([0.0, *finite]), tolerance if copied is not None else max(tolerance, LARGE_TOLERANCE)


def _in_double(model: nn.Module) -> nn.Module | None:
    """Return a copy in float64 on the CPU; None if it would be too large, fail, or call the original's ``forward``."""
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST_DOUBLE or any(_has_own_forward(module) for module in model.modules()):
        return None
    try:
        return copy.deepcopy(model).cpu().double()
    except Exception:  # foreign modules may raise anything
        return None


def _has_own_forward(module: nn.Module) -> bool:
    return "forward" in vars(module)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; restore every module's mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple, Mapping)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def _unlike(model: nn.Module, back: nn.Module) -> Iterator[str]:
    """Yield the modules that differ from those read back, have hooks, or have a replaced ``forward``."""
    others = dict(back.named_modules())
    for name, module in model.named_modules():
        where, other = name or "the model", others.get(name)
        if torch_has_hooks(module):
            yield f"{where} has hooks"
        if _has_own_forward(module):
            yield f"{where} has a forward of its own"
        if other is None:
            yield f"{where} ({type(module).__name__}) is missing"
        elif type(module) is not type(other) or module.extra_repr() != other.extra_repr():
            yield f"{where} is {_described(module)}, and would be {_described(other)}"


def _described(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"


_Result = TypeVar("_Result")


def write_folder(folder: Path, write: Callable[[Path], _Result], overwrite: bool = False) -> _Result:
    """Write a model's files into a folder, all of them or none. Identical files are not touched.

    Args:
        folder: created if needed.
        write: writes the files into an empty folder; its result is returned.
        overwrite: replace the folder's model.

    Raises:
        ExistingPathError: the folder has other files of these names; nothing was changed.
        PathError: the folder cannot be written; nothing was changed.
    """
    pair = (CONFIG, WEIGHTS)
    with path_errors("write", folder), replacing(folder, CONFIG, pair, overwrite) as staged:
        return write(staged)


def check_new(folder: Path, source: Source, overwrite: bool = False, names: Collection[str] = FILES) -> None:
    """Check an output folder before a model is made from a source.

    Args:
        folder: where the model will be written.
        source: what it will be made from.
        overwrite: replace the folder's model.
        names: files that will be written.

    Raises:
        ArgumentError: the folder holds the source.
        ExistingPathError: the folder already has a model's files.
    """
    places = [folder] if source.kind == "folder" else [folder / name for name in FILES if source.kind == "file"]
    with path_errors("write", folder):
        if any(place.exists() and place.samefile(source.path) for place in places):
            raise ArgumentError(f"{folder} holds the source: name another folder to write")
        check_free(folder, names, overwrite)


def save(
    model: Any,
    folder: Path,
    data_config: Mapping[str, Any] | None = None,
    ours: bool = True,
    original: nn.Module | None = None,
) -> None:
    """Write a timm model's weights and config. With ``ours`` it is read back and must give the same outputs.

    Args:
        model: the model, in any memory format.
        folder: where to write.
        data_config: preprocessing that differs from the model's own.
        ours: require one of our architectures.
        original: the model it was made from, if another host's.

    Raises:
        ArgumentError: the model is on the meta device, so has no weights, or it would be read back with other outputs.
        UnsupportedModelError: another architecture, or a quantised model.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if ours:
        check_ours(str(cfg.get("architecture")))
    state = model.state_dict()
    odd = sorted(name for name, value in state.items() if not isinstance(value, Tensor) or value.is_quantized)
    if odd:
        raise UnsupportedModelError(
            f"the model is quantised: {', '.join(odd[:3])}, ... are not plain tensors, and neither timm nor "
            "torchvision could load them; save the model it was made from"
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
        _progress.info("reading back what was written, and comparing")
        require_same(model, folder, original)


def _sayable(model: Any) -> dict[str, Any]:
    """Return config entries that replace arguments JSON cannot hold: ``norm_eps`` for a ``norm_layer``.

    Raises:
        ArgumentError: any other argument that is not a plain value.
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
        f"a config holds numbers, text and lists, but this model was built with {said}: use names instead, such as "
        "act_layer='gelu'; for a SwiGLU MLP, start from vit_giant_patch14_dinov2 or vit_giant_patch14_reg4_dinov2, "
        "which take your sizes as arguments"
    )


def save_embedded(entry: WeightsSpec, folder: Path) -> None:
    """Write ``config.json`` and, byte for byte, a registry entry's embedded file as ``model.safetensors``."""
    import timm

    save(timm.create_model(entry.name, pretrained=True), folder)
    shutil.copyfile(tables.data_dir("registry") / str(entry.file), folder / WEIGHTS)


def finish(
    folder: Path, license: str, card: Callable[[dict[str, Any]], str] | None = None, **extra: Any
) -> dict[str, Any]:
    """Add the licence to a timm config, make it readable by transformers, write the card and return the config.

    Args:
        folder: has ``config.json``.
        license: licence of the weights.
        card: returns the card for a config; None writes no card.
        extra: further fields of the config.
    """
    path = folder / CONFIG
    before = read_json(path)
    config = {**before, **extra, "pretrained_cfg": {**before["pretrained_cfg"], "license": license}}
    args = dict(before.get("model_args") or {})
    if args.pop("num_classes", None) is not None:  # also at the root; transformers' TimmWrapper fails if both have it
        config["model_args"] = args
    if config != before:
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    if card:
        (folder / CARD).write_text(card(config), encoding="utf-8")
    return config


def meta_model(folder: Path) -> Any:
    """Return a folder's model on the meta device, after passing an image through it.

    Raises:
        InvalidFileError: the config describes no model, or a model that cannot take images of its input size.
    """
    import timm
    import torch

    model = timm.create_model(f"local-dir:{folder}", device="meta").eval()
    size = model.pretrained_cfg["input_size"]
    try:
        model(torch.empty(1, *size, device="meta"))
    except Exception as error:  # timm and torch may raise anything
        raise InvalidFileError(
            f"config.json describes a model that cannot take images of its input_size {list(size)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return model
