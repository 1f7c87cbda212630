"""Missing or full devices and interrupted loads give one sentence and leave nothing behind."""

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
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
from convstem.weights.devices import DeviceCopier, Piece, enough_memory
from tests.support.everyday import one_in
from tests.support.fake_device import FakeCopier

NANO = "vit_nano4_convstem"
LOADS: dict[str, Callable[..., nn.Module]] = {
    "timm": lambda **kwargs: timm.create_model(NANO, pretrained=True, **kwargs),
    "load": lambda **kwargs: convstem.load(NANO, allow_nonfinite=True, **kwargs),
    "torchvision": lambda **_: torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT"),
}
NO_ROOM = "CUDA out of memory. Tried to allocate 2.25 MiB. GPU 0 has a total capacity of 80 GiB of which 1 MiB is free"


class Failing(FakeCopier):
    """Raises an error instead of sending, and remembers the targets."""

    error: type[BaseException] = KeyboardInterrupt
    targets: list["weakref.ref[Tensor]"]

    def send(self, pieces: Sequence[Piece], buffer: Tensor) -> int:
        self.targets = [weakref.ref(piece.move.target) for piece in pieces]
        raise self.error(NO_ROOM)


class Full(Failing):
    error = torch.OutOfMemoryError


class NoRoomFor(TorchFunctionMode):
    """A device that runs out of memory at a given call of ``torch.empty``."""

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


class FullOfApple(Failing):
    def send(self, pieces: Sequence[Piece], buffer: Tensor) -> int:
        self.targets = [weakref.ref(piece.move.target) for piece in pieces]
        raise RuntimeError(
            "MPS backend out of memory (MPS allocated: 8.0 GB, other allocations: 1.0 GB, max allowed: 9.1 GB). Tried "
            "to allocate 2.25 MiB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit."
        )


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


@pytest.mark.parametrize("how", one_in(3, list(LOADS)))
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
    assert not any(target() is not None for target in copier.targets)  # although `caught` still exists


def test_a_device_whose_error_is_a_plain_one(fake_device: list[FakeCopier], monkeypatch: pytest.MonkeyPatch) -> None:
    copier = FullOfApple()
    put_in_place(monkeypatch, copier)
    with pytest.raises(
        DeviceMemoryError, match=r"MPS backend out of memory \(.*\)\. Tried .* private pool\): free memory"
    ):
        LOADS["timm"]()
    gc.collect()
    assert not any(target() is not None for target in copier.targets)
    with pytest.raises(DeviceMemoryError, match="can't allocate memory"), enough_memory():
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried")
    with pytest.raises(RuntimeError, match="mine") as caught, enough_memory():
        raise RuntimeError("mine")  # negative control
    assert type(caught.value) is RuntimeError


@pytest.mark.parametrize(("dtype", "advised"), [(None, True), (torch.float64, True), (torch.bfloat16, False)])
@pytest.mark.parametrize("how", ["timm", "load"])
def test_half_precision_is_not_advised_to_who_has_it(
    how: str, dtype: Any, advised: bool, fake_device: list[FakeCopier], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(monkeypatch, Full())
    with pytest.raises(DeviceMemoryError, match="free memory there") as caught:
        LOADS[how](dtype=dtype)
    assert ("bfloat16" in str(caught.value)) is advised


@pytest.mark.parametrize("how", LOADS)
def test_accelerates_empty_weights(how: str) -> None:
    init_empty_weights = pytest.importorskip("accelerate").init_empty_weights
    with init_empty_weights():
        assert nn.Linear(2, 2).weight.is_meta  # negative control
        with pytest.raises(ArgumentError, match="the meta device here .as accelerate's init_empty_weights does"):
            LOADS[how]()
    with init_empty_weights(include_buffers=True), pytest.warns(UserWarning, match="meta device"):
        model = LOADS[how]()  # only the default device is set
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", torch.float8_e5m2, torch.int8, "int64", "nonsense", "Tensor"])
@pytest.mark.parametrize("how", ["timm", "load"])
def test_a_type_in_which_no_model_computes(how: str, dtype: Any) -> None:
    with pytest.raises(ArgumentError, match="dtype must be a floating-point type .*float64; got"):
        LOADS[how](dtype=dtype)


@pytest.mark.parametrize("how", LOADS)
def test_loading_while_a_graph_is_captured(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(is_initialized=lambda: True, is_current_stream_capturing=lambda: True)
    monkeypatch.setattr(torch, "cpu", module)  # stands in for torch.cuda
    with pytest.raises(ArgumentError, match="a graph is being captured on cpu.*load it before the capture begins"):
        LOADS[how]()
    module.is_initialized = lambda: False  # then asking about capture would create a context
    assert LOADS[how]()


@pytest.mark.parametrize("how", one_in(3, list(LOADS)))
def test_no_room_for_the_parameters(how: str) -> None:
    with pytest.raises(DeviceMemoryError, match="no room for the model") as caught, NoRoomFor(30) as room:
        LOADS[how]()
    gc.collect()
    assert len(room.made) == 30
    assert not any(tensor() is not None for tensor in room.made)
    assert caught.value


@pytest.mark.parametrize("how", one_in(3, list(LOADS)))
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
    assert float(nn.Linear(300, 300).weight.detach().std()) > 0.03  # initialised as usual
    assert LOADS[how]().state_dict()  # the next load works
    assert fake_device[-1].finished


def test_a_buffer_is_of_bytes_of_the_host_that_no_default_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory needs an accelerator, so only the request is checked."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **asked: (pin_memory, empty(*size, **asked)))
    with torch.device("meta"):
        pinned, buffer = DeviceCopier.buffer(None, 24)
    assert pinned is True
    assert (buffer.dtype, buffer.device.type, buffer.shape) == (torch.uint8, "cpu", (24,))
