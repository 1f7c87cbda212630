"""Devices that are not there or have no room, and interrupted loads: one sentence, and nothing stays behind."""

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import convstem
from convstem.errors import ArgumentError, DeviceMemoryError
from convstem.files.safetensors import ALLOW_NONFINITE
from convstem.weights import deferred
from convstem.weights.transfer import Piece
from tests.support.fake_device import FakeCopier

NANO = "vit_nano4_convstem"
LOADS: dict[str, Callable[..., nn.Module]] = {
    "timm": lambda **kwargs: timm.create_model(NANO, pretrained=True, **kwargs),
    "load": lambda **kwargs: convstem.load(NANO, allow_nonfinite=True, **kwargs),
    "torchvision": lambda **_: torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT"),
}
NO_ROOM = "CUDA out of memory. Tried to allocate 2.25 MiB. GPU 0 has a total capacity of 80 GiB of which 1 MiB is free"


class Failing(FakeCopier):
    """Has an error instead of sending, and remembers what it was to fill."""

    error: type[BaseException] = KeyboardInterrupt
    targets: list["weakref.ref[Tensor]"]

    def send(self, pieces: Sequence[Piece], buffer: Tensor) -> int:
        self.targets = [weakref.ref(piece.move.target) for piece in pieces]
        raise self.error(NO_ROOM)


class Full(Failing):
    error = torch.OutOfMemoryError


class NoRoomFor(TorchFunctionMode):
    """A device whose memory ends with a given call of ``torch.empty``."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = call
        self.made: list[weakref.ref[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.empty:
            self.left -= 1
            self.made.append(weakref.ref(result))
            if not self.left:
                raise torch.OutOfMemoryError(NO_ROOM)
        return result


def put_in_place(monkeypatch: pytest.MonkeyPatch, copier: Failing) -> None:
    monkeypatch.setattr(deferred, "DeviceCopier", lambda device: copier)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "xpu:7", ["cpu"]])
@pytest.mark.parametrize("how", ["timm", "load"])
def test_a_device_that_is_not_there(how: str, device: Any) -> None:
    with pytest.raises(ArgumentError, match=r"cannot put a model on the device \S+ \(.+\): choose from cpu") as caught:
        LOADS[how](device=device)
    assert str(caught.value).count("\n") == 0


def test_a_wrong_device_ends_before_anything_is_fetched() -> None:
    with pytest.raises(convstem.ConvStemError, match="offline|Hub") as caught:
        convstem.load("nobody/nothing")  # negative control
    assert not isinstance(caught.value, ArgumentError)
    with pytest.raises(ArgumentError, match="cannot put a model on the device"):
        convstem.load("nobody/nothing", device="gpu")


@pytest.mark.parametrize("how", LOADS)
def test_no_room_for_the_values(how: str, fake_device: list[FakeCopier], monkeypatch: pytest.MonkeyPatch) -> None:
    copier = Full()
    put_in_place(monkeypatch, copier)
    with pytest.raises(DeviceMemoryError) as caught:
        LOADS[how]()
    assert str(caught.value) == (
        "the device has no room for the model (CUDA out of memory. Tried to allocate 2.25 MiB): free memory there, or "
        "load with dtype=torch.bfloat16, which takes half"
    )
    assert copier.finished
    gc.collect()
    assert copier.targets
    assert not any(target() is not None for target in copier.targets)  # though `caught` is still there


@pytest.mark.parametrize("how", LOADS)
def test_no_room_for_the_parameters(how: str) -> None:
    with pytest.raises(DeviceMemoryError, match="no room for the model") as caught, NoRoomFor(30) as room:
        LOADS[how]()
    gc.collect()
    assert len(room.made) == 30
    assert not any(tensor() is not None for tensor in room.made)
    assert caught.value


@pytest.mark.parametrize("how", LOADS)
def test_an_interrupted_load_leaves_nothing_behind(
    how: str, fake_device: list[FakeCopier], monkeypatch: pytest.MonkeyPatch
) -> None:
    copier = Failing()
    with monkeypatch.context() as patch:
        put_in_place(patch, copier)
        with pytest.raises(KeyboardInterrupt):
            LOADS[how]()
    gc.collect()
    assert copier.finished
    assert not any(target() is not None for target in copier.targets)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("convstem-transfer")]
    assert not ALLOW_NONFINITE.get()
    assert float(nn.Linear(300, 300).weight.detach().std()) > 0.03  # initialised as ever
    assert LOADS[how]().state_dict()  # and the next load works
    assert fake_device[-1].finished
