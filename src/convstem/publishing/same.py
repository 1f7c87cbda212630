"""Tells whether what was written computes what the model computes: a config cannot say everything about a module."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convstem.errors import ArgumentError, ConvStemError, UnsupportedModelError
from convstem.files.safetensors import ALLOW_NONFINITE
from convstem.hub.config import read_json
from convstem.hub.source import CONFIG
from convstem.layouts.comparison import some_of
from convstem.upstream.private import torch_has_hooks

TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-7}
"""Largest relative difference of outputs in float64, by the type of the parameters."""

HALF_TOLERANCE = 3e-2
"""The same for half precision: there the model's own tables, which no file holds, are rounded as well."""

LARGEST_DOUBLE = 1 << 29
"""Parameters of the largest model that is compared in float64; others in float32, within ``LARGE_TOLERANCE``."""

LARGE_TOLERANCE = 1e-4
"""Also for a model that cannot be copied, and for one with forwards of its own, which work where and as it is."""


@torch.no_grad()
def require_same(model: nn.Module, folder: Path, original: nn.Module | None = None) -> None:
    """Compare a model with what is read back from the folder that it was written to, on a seeded image.

    An epsilon that all LayerNorms of the trunk share is written into the config first, where it is another.

    Args:
        model: one of our timm models, as it was written.
        folder: where ``config.json`` and ``model.safetensors`` lie.
        original: what must be computed, if ``model`` was made of another host's.

    Raises:
        ArgumentError: the outputs differ; the message names the modules that are not what the config says.
        UnsupportedModelError: the model takes no images of its size.
    """
    back = _read(folder)
    if (epsilon := epsilon_of(model)) is not None and epsilon_of(back) not in (None, epsilon):
        back = _with_epsilon(folder, epsilon, back)
    error, tolerance = _difference(original or model, back)
    if error > tolerance:
        found = list(_unlike(model, back)) or ["no module that differs by its description"]
        raise ArgumentError(
            f"what would be read back computes something else (relative difference {error:.1e} on an image): "
            f"{some_of(found)}. A config cannot say this: build the model with the arguments that it needs, or undo "
            "the change"
        )


def _read(folder: Path) -> nn.Module:
    """Return the model of a folder in float32, NaN and Inf included: those are for others to find."""
    import timm

    allowed = ALLOW_NONFINITE.set(True)
    try:
        with torch.device("cpu"):
            return timm.create_model(f"local-dir:{folder}", pretrained=True, dtype=torch.float32)
    finally:
        ALLOW_NONFINITE.reset(allowed)


def epsilon_of(model: nn.Module) -> float | None:
    """Return the epsilon of the trunk's LayerNorms, if they share one."""
    found = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm) and _is_trunks(module)}
    return found.pop() if len(found) == 1 else None


def _is_trunks(norm: nn.Module) -> bool:
    return not type(norm).__name__.endswith("2d")  # the stem's


def _with_epsilon(folder: Path, epsilon: float, back: nn.Module) -> nn.Module:
    """Write an epsilon into a config and return what is read then; undo it where the trunk's class takes none."""
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
    """Return the relative difference of two models' outputs on a seeded image, and what is accepted."""
    image = torch.randn(1, *back.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0), device="cpu")
    types = {parameter.dtype for parameter in model.parameters()}
    tolerance = max([TOLERANCE.get(dtype, HALF_TOLERANCE) for dtype in types], default=0.0)
    copied = _in_double(model)
    first = model if copied is None else copied
    place = next(first.parameters())
    with _evaluating(first), torch.device(place.device):  # where tables are made during a forward
        image, back = image.to(place), back.to(place).eval()
        try:
            expected = list(_tensors(first(image)))
        except Exception as error:  # whatever modules of anybody's say
            raise UnsupportedModelError(
                f"the model takes no image of {list(image.shape[1:])}, its input_size ({type(error).__name__}: {error})"
            ) from error
        actual = list(_tensors(back(image)))
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return float("inf"), tolerance
    differences = [float((a - e).norm() / (e.norm() or 1)) for a, e in zip(actual, expected, strict=True)]
    finite = [value for value in differences if value == value]  # NaN in weights is said elsewhere
    return max([0.0, *finite]), tolerance if copied is not None else max(tolerance, LARGE_TOLERANCE)


def _in_double(model: nn.Module) -> nn.Module | None:
    """Return a copy in float64 on the CPU; None where there is no room for one, or a copy would call its original."""
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST_DOUBLE or any(_has_own_forward(module) for module in model.modules()):
        return None
    try:
        return copy.deepcopy(model).cpu().double()
    except Exception:  # whatever modules of anybody's say
        return None


def _has_own_forward(module: nn.Module) -> bool:
    return "forward" in vars(module)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and every module back afterwards."""
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
    """Yield the modules that are not described as those that are read back, and those with hooks."""
    others = dict(back.named_modules())
    for name, module in model.named_modules():
        where, other = name or "the model", others.get(name)
        if torch_has_hooks(module):
            yield f"{where} has hooks"
        if _has_own_forward(module):
            yield f"{where} has a forward of its own"
        if other is None:
            yield f"{where} ({type(module).__name__}) is not there"
        elif type(module) is not type(other) or module.extra_repr() != other.extra_repr():
            yield f"{where} is {_described(module)}, and would be {_described(other)}"


def _described(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"
