"""Where a pretrained model goes: a device that is there, holds values, and has room."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from convstem.errors import ArgumentError, DeviceMemoryError, warn
from convstem.files.safetensors import nonfinite, nonfinite_allowed
from convstem.layouts.comparison import some_of
from convstem.upstream.private import torch_keeps_values

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""Types in which a model computes."""

_FULL = re.compile("out of memory|can't allocate memory", re.IGNORECASE)
"""What devices without an error class of their own say, Apple's and the CPU among them."""


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a type in which a model computes, for itself or its name; None stays None.

    Raises:
        ArgumentError: any other, such as float8, in which torch stores values and computes next to nothing.
    """
    found: Any = getattr(torch, dtype.removeprefix("torch."), dtype) if isinstance(dtype, str) else dtype
    if found is None or found in [getattr(torch, name) for name in DTYPES]:
        return found
    raise ArgumentError(f"dtype must be a floating-point type of torch or its name: {', '.join(DTYPES)}; got {dtype!r}")


def check_device(device: Any) -> None:
    """Raise ``ArgumentError`` unless a model can be loaded onto a device, None for torch's default one.

    torch must have it here, it must be free, and modules must keep values, as they do not under accelerate's
    ``init_empty_weights``.

    torch itself is asked, with a tensor of no elements: so any backend is known, and it says why not. On an accelerator
    that makes its context, before anything is fetched.
    """
    try:
        found = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ArgumentError(
            f"torch cannot put a model on the device {device!r} ({reason}): choose from {', '.join(devices())}"
        ) from error
    if _captures(found):
        raise ArgumentError(
            f"a graph is being captured on {found}, which records what is computed and cannot load a model: load it "
            "before the capture begins"
        )
    if not torch_keeps_values():
        raise ArgumentError(
            "every parameter is made on the meta device here (as accelerate's init_empty_weights does), where "
            "pretrained weights would be lost: load the model outside of it, or do not ask for weights"
        )


def _captures(device: torch.device) -> bool:
    """Tell whether the device's current stream is being captured into a graph, as ``torch.cuda.graph`` does."""
    module = getattr(torch, device.type, None)
    initialised, asked = (getattr(module, name, None) for name in ("is_initialized", "is_current_stream_capturing"))
    return bool(initialised and asked and initialised() and asked())


def devices() -> list[str]:
    """Return the names of the devices that torch has here."""
    accelerator = getattr(torch, "accelerator", None)  # torch 2.6
    if accelerator is None or not accelerator.is_available():
        return ["cpu"]
    kind = accelerator.current_accelerator().type
    return ["cpu", *(f"{kind}:{index}" for index in range(accelerator.device_count()))]


@contextmanager
def enough_memory(dtype: torch.dtype | None = None) -> Iterator[None]:
    """Say in one sentence that a device has no room for the model, and let go of what was on it already.

    Args:
        dtype: of the model; default: torch's default.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or _FULL.search(str(error))):
            raise
        # The frames of the traceback hold the half-built model, for as long as the caller keeps the exception.
        traceback.clear_frames(error.__traceback__)
        half = torch.finfo(dtype or torch.get_default_dtype()).bits <= 16
        smaller = "" if half else ", or load with dtype=torch.bfloat16, which takes half"
        said = ". ".join(str(error).splitlines()[0].split(". ")[:2]).rstrip(".")
        raise DeviceMemoryError(f"the device has no room for the model ({said}): free memory there{smaller}") from None


@contextmanager
def off_meta(kwargs: dict[str, Any]) -> Iterator[None]:
    """Keep a pretrained model off the meta device, where its weights would be lost without a word.

    Args:
        kwargs: the builder's arguments, from which ``device`` is taken away if it is the meta device.

    Warns:
        UserWarning: the meta device was asked for, or is the default device; the model is loaded on the CPU.
    """
    default = torch.empty(0).device  # get_default_device of torch 2.6 does not see `with torch.device(...)`
    if torch.device(kwargs.get("device") or default).type != "meta":
        yield
        return
    warn(
        "the meta device holds no values, and pretrained weights were asked for: the model was loaded on the CPU. For "
        "a model without values do not ask for weights"
    )
    kwargs.pop("device", None)
    with torch.device("cpu"):
        yield


def check_cast(model: nn.Module) -> None:
    """Raise ``ArgumentError`` if finite weights became Inf in a model of float16, whose largest number is 65,504."""
    half = {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.float16}
    lost = [] if nonfinite_allowed() else nonfinite(half)
    if lost:
        raise ArgumentError(
            f"float16 cannot hold these weights, some of which are beyond 65,504: {some_of(lost)} became Inf. Load "
            "with dtype=torch.bfloat16, which reaches as far as float32"
        )
