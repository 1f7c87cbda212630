"""Deferred initialisation: loaded parameters are never initialised, all others always are."""

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convstem.weights import deferred
from convstem.weights.deferred import DeferredInit


class InitialisedTwice(nn.Linear):
    """Initialises its parameters once more, after the parent class."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.weight, std=0.02)
        nn.init.constant_(self.bias, 3.0)


def state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {"weight": torch.randn(4, 8), "bias": torch.randn(4)}


@pytest.mark.parametrize("adopt", [True, False])
def test_loaded_parameters_are_what_was_loaded(adopt: bool) -> None:
    source = state()
    with DeferredInit(adopt):
        layer = InitialisedTwice(8, 4)
        layer.load_state_dict(source)
    assert torch.equal(layer.weight, source["weight"])
    assert torch.equal(layer.bias, source["bias"])
    assert layer.weight.requires_grad
    assert layer.weight.is_leaf
    assert (layer.weight.data_ptr() == source["weight"].data_ptr()) is adopt


def test_the_rest_is_initialised_on_leaving_as_usual() -> None:
    with DeferredInit(adopt=True):
        layer = InitialisedTwice(8, 4)
        layer.load_state_dict({"weight": state()["weight"]}, strict=False)
    assert torch.equal(layer.bias, torch.full((4,), 3.0))
    with DeferredInit():
        large = InitialisedTwice(300, 300)
    assert float(large.weight.detach().std()) == pytest.approx(0.02, rel=0.05)  # the last initialisation counts
    assert float(nn.Linear(300, 300).weight.detach().std()) > 0.03  # negative control: torch's own


def test_nothing_is_computed_for_what_is_loaded() -> None:
    source, before = state(), torch.get_rng_state()
    with DeferredInit():
        InitialisedTwice(8, 4).load_state_dict(source)
    assert torch.equal(torch.get_rng_state(), before)  # no random number was drawn
    InitialisedTwice(8, 4)
    assert not torch.equal(torch.get_rng_state(), before)  # negative control


def test_reading_a_parameter_initialises_it_first() -> None:
    with DeferredInit():
        layer = InitialisedTwice(8, 4)
        assert float(layer.bias.detach().sum()) == 12
    with DeferredInit(), torch.no_grad():
        layer = InitialisedTwice(8, 4)
        layer.bias[0] = 5.0  # a partial write must come after the initialisation
        layer.bias.data.add_(1)
    assert layer.bias.tolist() == [6, 4, 4, 4]


def test_one_tensor_loaded_twice_ties_nothing() -> None:
    shared = torch.randn(4, 8)
    with DeferredInit(adopt=True):
        a, b = InitialisedTwice(8, 4), InitialisedTwice(8, 4)
        for layer in (a, b):
            layer.load_state_dict({"weight": shared, "bias": torch.zeros(4)})
    with torch.no_grad():
        a.weight.zero_()
    assert b.weight.abs().sum() > 0


def test_other_types_and_strides_are_copied() -> None:
    source = {"weight": torch.randn(8, 4).T, "bias": torch.randn(4, dtype=torch.float64)}
    with DeferredInit(adopt=True):
        layer = InitialisedTwice(8, 4)
        layer.load_state_dict(source)
    assert layer.weight.is_contiguous()
    assert torch.equal(layer.weight, source["weight"])
    assert layer.bias.dtype == torch.float32


def test_a_part_of_a_larger_tensor_is_copied(tmp_path: Path) -> None:
    large = torch.randn(1000, 8)
    with DeferredInit(adopt=True):
        layer = InitialisedTwice(8, 4)
        layer.load_state_dict({"weight": large[:4], "bias": torch.zeros(4)})
    assert torch.equal(layer.weight, large[:4])
    torch.save(layer.state_dict(), tmp_path / "layer.pth")
    assert (tmp_path / "layer.pth").stat().st_size < large.nbytes / 4


def test_one_parameter_copied_from_another() -> None:
    with DeferredInit():
        a, b = InitialisedTwice(8, 4), InitialisedTwice(8, 4)
        with torch.no_grad():
            b.weight.copy_(a.weight)
    assert torch.equal(a.weight, b.weight)


def test_a_replaced_parameter_is_forgotten() -> None:
    with DeferredInit() as mode:
        layer = InitialisedTwice(8, 4)
        layer.weight = nn.Parameter(torch.zeros(4, 8))
        gc.collect()
        assert len(mode._pending) == 1  # the bias
    assert layer.weight.abs().sum() == 0


def test_an_error_inside_comes_out_unchanged() -> None:
    with pytest.raises(RuntimeError, match="mine"), DeferredInit():
        InitialisedTwice(8, 4)
        raise RuntimeError("mine")


def test_other_threads_are_not_affected() -> None:
    from threading import Thread

    found = []
    with DeferredInit():
        thread = Thread(target=lambda: found.append(InitialisedTwice(8, 4).bias.tolist()))
        thread.start()
        thread.join()
    assert found == [[3.0] * 4]


def test_a_default_device_is_kept() -> None:
    with torch.device("meta"), DeferredInit():
        assert InitialisedTwice(8, 4).weight.is_meta


def test_parameters_inside_containers_are_seen() -> None:
    with DeferredInit():
        parameter = nn.Parameter(torch.empty(3))
        nn.init.ones_(parameter)
        joined = torch.cat([parameter, parameter])
        stacked = torch.stack(tensors=(parameter, parameter))
    assert joined.tolist() == [1.0] * 6
    assert stacked.tolist() == [[1.0] * 3] * 2


def test_a_call_with_another_tensor_does_not_wait_for_it_to_change() -> None:
    with DeferredInit(), torch.no_grad():
        parameter, other = nn.Parameter(torch.empty(3)), torch.ones(3)
        nn.init.ones_(parameter)
        parameter.add_(other)
        other.fill_(100)
    assert parameter.tolist() == [2.0] * 3


def test_what_travels_is_of_one_shape_and_lies_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "has_streams", lambda device: True)
    whole, other = torch.zeros(2, 3), torch.zeros(6)
    assert deferred._travels(whole, torch.ones(2, 3))
    assert not deferred._travels(whole, other)  # another shape
    assert not deferred._travels(torch.zeros(3, 2).t(), torch.ones(2, 3))  # not contiguous
    assert not deferred._travels(whole, torch.ones(2, 3, device="meta"))
    monkeypatch.setattr(deferred, "has_streams", lambda device: False)
    assert not deferred._travels(whole, torch.ones(2, 3))
