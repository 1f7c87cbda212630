"""Weights copied to an accelerator: every byte arrives once, buffers are reused only when free."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import convstem
from convstem.registry.tables import data_dir
from convstem.weights.deferred import DeferredInit
from convstem.weights.devices import ALIGNMENT, DeviceCopier, Move, Piece, batches, has_streams, transfer
from tests.support.fake_device import FakeCopier


def moves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Move]:
    generator = torch.Generator().manual_seed(0)
    sources = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [Move(torch.full_like(source, 7.0), source) for source in sources]


SHAPES = ((300, 70), (), (5,), (0, 4), (129, 3, 3), (1,), (1000,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("threads", [1, 3])
def test_everything_arrives(dtype: torch.dtype, threads: int) -> None:
    todo, copier = moves(*SHAPES, dtype=dtype), FakeCopier()
    assert not any(torch.equal(move.target, move.source) for move in todo if move.source.numel())  # negative control
    transfer(todo, copier, size=4096, threads=threads)
    assert all(torch.equal(move.target, move.source) for move in todo)
    assert copier.finished
    assert copier.bytes == sum(move.source.nbytes for move in todo)  # nothing is sent twice
    assert copier.buffers == 3
    assert copier.most_pending == 3  # copies overlap with filling; no buffer is filled during its copy
    assert copier.sent > 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_happens_on_the_host(dtype: torch.dtype) -> None:
    source, copier = torch.randn(100), FakeCopier()
    target = torch.zeros(100, dtype=dtype)
    transfer([Move(target, source)], copier, size=256)
    assert torch.equal(target, source.to(dtype))
    assert copier.bytes == target.nbytes  # half of the source's bytes for 16-bit dtypes


def test_buffers_are_no_larger_than_what_is_sent() -> None:
    """A small model once kept 48 MiB pinned for the life of the process."""
    for shapes, buffers, size in ((((0,),), 0, 0), (((5,),), 1, 128), (((100_000,),), 1, 400_000), (SHAPES, 1, 93_000)):
        copier = FakeCopier()
        transfer(moves(*shapes), copier)
        assert copier.buffers == buffers
        assert copier.buffered <= size + len(shapes) * ALIGNMENT
    transfer(moves((1 << 20,)), copier := FakeCopier(), size=1 << 20)
    assert (copier.buffers, copier.buffered) == (3, 3 << 20)  # only as many as take turns


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_pinned_memory_that_is_refused(refused: int) -> None:
    class Refusing(FakeCopier):
        def buffer(self, size: int) -> Tensor:
            if self.buffers + 1 >= refused:
                raise RuntimeError("CUDA error: out of memory")
            return super().buffer(size)

    todo, copier = moves(*SHAPES), Refusing()
    transfer(todo, copier, size=4096)
    assert all(torch.equal(move.target, move.source) for move in todo)
    assert copier.buffers == refused - 1
    assert bool(copier.sent) is (refused > 1)  # with none, plain copies


def test_a_second_interrupt_waits_too() -> None:
    class Impatient(FakeCopier):
        left = 2

        def send(self, pieces: Sequence[Piece], buffer: Tensor) -> int:
            if self.sent == 1:
                raise KeyboardInterrupt
            return super().send(pieces, buffer)

        def finish(self) -> None:
            if self.left:
                self.left -= 1
                raise KeyboardInterrupt
            super().finish()

    copier = Impatient()
    with pytest.raises(KeyboardInterrupt):
        transfer(moves(*SHAPES), copier, size=4096)
    assert copier.finished and not copier.pending


class FakeModule:
    """A device's torch module, on the CPU: counts streams and events."""

    def __init__(self) -> None:
        self.streams: list[FakeStream] = []
        self.entered = 0

    def Stream(self, device: torch.device) -> "FakeStream":
        self.streams.append(FakeStream())
        return self.streams[-1]

    def Event(self) -> Any:
        return SimpleNamespace(record=lambda stream: None, synchronize=lambda: None)

    def current_stream(self, device: torch.device) -> str:
        return "current"

    @contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        self.entered += 1
        yield


class FakeStream:
    waited = synchronised = 0

    def wait_stream(self, other: str) -> None:
        assert other == "current"
        self.waited += 1

    def synchronize(self) -> None:
        self.synchronised += 1


class Made(TorchDispatchMode):
    """Counts elements of tensors created while copies are sent; on a device they would stay in its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not any(
            isinstance(a, Tensor) and a.untyped_storage().data_ptr() == result.untyped_storage().data_ptr()
            for a in args
        ):
            self.elements += result.numel()
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_stream_and_no_memory_of_the_device_beside_the_targets(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = FakeModule()
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    made = Made()

    class Copier(DeviceCopier):
        def buffer(self, size: int) -> Tensor:
            return torch.empty(size, dtype=torch.uint8)

        def send(self, pieces: Sequence[Piece], buffer: Tensor) -> Any:
            with made:
                return super().send(pieces, buffer)

    todo = [Move(move.target.to(dtype), move.source) for move in moves(*SHAPES)]
    transfer(todo, Copier(torch.device("cpu")), size=4096)
    assert all(torch.equal(move.target, move.source.to(dtype)) for move in todo)
    (stream,) = module.streams
    assert (stream.waited, stream.synchronised) == (1, 1) and module.entered > 3
    assert made.elements == 0
    with made:
        torch.zeros(3, dtype=dtype).to(torch.float64)
    assert made.elements >= 3  # negative control


def test_devices_that_cannot_copy_asynchronously_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("xla")
    with pytest.raises(RuntimeError, match="does not have a corresponding module"):
        torch.get_device_module(device)  # negative control
    assert not has_streams(device)
    for lacking in ("Event", "Stream", "current_stream", "stream"):
        module = SimpleNamespace(**{n: None for n in ("Event", "Stream", "current_stream", "stream") if n != lacking})
        monkeypatch.setattr(torch, "get_device_module", lambda device, module=module: module)
        assert not has_streams(device)
    monkeypatch.setattr(torch, "get_device_module", lambda device: FakeModule())
    assert has_streams(device)


def test_pieces_are_aligned_do_not_overlap_and_fit() -> None:
    size = 1024
    for pieces in batches(moves(*SHAPES), size, size // 2):
        ends = [piece.offset + piece.of_source().nbytes for piece in pieces]
        assert all(piece.offset % ALIGNMENT == 0 for piece in pieces)
        assert all(end <= piece.offset for end, piece in zip(ends, pieces[1:], strict=False))
        assert ends[-1] <= size
        assert all(piece.of_source().nbytes <= size // 2 for piece in pieces)


def test_an_interrupted_transfer_raises_and_leaves_no_thread() -> None:
    import threading

    class Failing(FakeCopier):
        def send(self, pieces: Sequence[Piece], buffer: Tensor) -> int:
            if self.sent == 2:
                raise KeyboardInterrupt
            return super().send(pieces, buffer)

    copier = Failing()
    with pytest.raises(KeyboardInterrupt):
        transfer(moves(*SHAPES), copier, size=4096)
    assert copier.finished  # no more writes into the targets, whose memory may be reused
    assert not copier.pending
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("convstem-transfer")]


def test_the_cpu_needs_no_pipeline() -> None:
    assert not has_streams(torch.device("cpu"))
    assert not has_streams(torch.device("meta"))


def test_loading_sends_all_parameters_together(fake_device: list[FakeCopier]) -> None:
    source = nn.Linear(8, 4).state_dict()
    with DeferredInit(adopt=True):
        layer = nn.Linear(8, 4)
        layer.load_state_dict(source)
        assert not fake_device  # nothing has moved yet
    assert len(fake_device) == 1
    assert fake_device[0].finished
    assert fake_device[0].bytes == sum(tensor.nbytes for tensor in source.values())
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in source.items())
    assert layer.weight.data_ptr() != source["weight"].data_ptr()


def test_what_is_read_or_changed_early_has_arrived(fake_device: list[FakeCopier]) -> None:
    source = nn.Linear(8, 4).state_dict()
    with DeferredInit():
        layer = nn.Linear(8, 4)
        layer.load_state_dict(source)
        total = float(layer.weight.detach().sum())
        nn.init.constant_(layer.bias, 3.0)
    assert total == pytest.approx(float(source["weight"].sum()))
    assert torch.equal(layer.bias, torch.full((4,), 3.0))


def test_a_failed_load_sends_nothing(fake_device: list[FakeCopier]) -> None:
    with pytest.raises(KeyboardInterrupt), DeferredInit():
        nn.Linear(8, 4).load_state_dict(nn.Linear(8, 4).state_dict())
        raise KeyboardInterrupt
    assert not fake_device


LOADS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: timm.create_model("vit_nano4_convstem", pretrained=True, device="cpu"),
    "load": lambda: convstem.load("vit_nano4_convstem", device="cpu"),
    "load as torchvision's": lambda: convstem.load("vit_nano4_convstem", device="cpu", layout="torchvision"),
    "torchvision": lambda: torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT"),
}


@pytest.mark.parametrize("how", LOADS)
def test_every_way_to_load_goes_through_the_buffers(how: str, fake_device: list[FakeCopier]) -> None:
    model = LOADS[how]()
    assert sum(copier.bytes for copier in fake_device) == 4 * sum(p.numel() for p in model.parameters())
    assert all(copier.finished for copier in fake_device)
    images = torch.randn(2, 3, 32, 32)
    fake_device.clear()
    expected = timm.create_model("vit_nano4_convstem", pretrained=True).eval()
    with torch.no_grad():
        assert torch.allclose(model.eval()(images), expected(images), atol=1e-5)


def test_a_pretrained_model_in_half_precision(fake_device: list[FakeCopier]) -> None:
    model = timm.create_model("vit_nano4_convstem", pretrained=True, dtype=torch.bfloat16)
    moved = sum(copier.bytes for copier in fake_device)
    fake_device.clear()
    file = load_file(data_dir("registry") / "weights" / "vit_nano4_convstem.cifar10.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[key], value.to(state[key].dtype)) for key, value in file.items())
    assert moved == 2 * sum(parameter.numel() for parameter in model.parameters())  # cast before the copy
