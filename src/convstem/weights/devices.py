"""Where a pretrained model goes: a device that is there, holds values, and has room."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from convstem.errors import ArgumentError, DeviceMemoryError, warn
from convstem.files.safetensors import nonfinite, nonfinite_allowed
from convstem.layouts.comparison import some_of


def check_device(device: Any) -> None:
    """Raise ``ArgumentError`` unless torch has this device here; None is its default device.

    torch itself is asked, with a tensor of no elements: so any backend is known, and it says why not.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ArgumentError(
            f"torch cannot put a model on the device {device!r} ({reason}): choose from {', '.join(devices())}"
        ) from error


def devices() -> list[str]:
    """Return the names of the devices that torch has here."""
    accelerator = getattr(torch, "accelerator", None)  # torch 2.6
    if accelerator is None or not accelerator.is_available():
        return ["cpu"]
    kind = accelerator.current_accelerator().type
    return ["cpu", *(f"{kind}:{index}" for index in range(accelerator.device_count()))]


@contextmanager
def enough_memory() -> Iterator[None]:
    """Say in one sentence that a device has no room for the model, and let go of what was on it already."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        # The frames of the traceback hold the half-built model, for as long as the caller keeps the exception.
        traceback.clear_frames(error.__traceback__)
        raise DeviceMemoryError(
            f"the device has no room for the model ({'. '.join(str(error).split('. ')[:2]).rstrip('.')}): free memory "
            "there, or load with dtype=torch.bfloat16, which takes half"
        ) from None


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
