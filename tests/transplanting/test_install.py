"""What the transplant of a patch embedding returns: parameters, BatchNorm statistics, report and errors."""

import math

import pytest
import torch
from torch import nn

from convstem.registry.stem_spec import StemSpec
from convstem.transplanting.algebra import transplant_stem
from convstem.transplanting.statistics import image_statistics, prior_statistics
from tests.support.stem_transplants import HIGH, LOW, filters, relative_error, smooth_images, transplant, white_images


def test_batch_norm_is_calibrated() -> None:
    images = smooth_images(3, 128, count=8).float()
    weight, bias = filters(30, 3, 4)
    stem, _ = transplant(StemSpec((12, 48)), weight, bias, statistics=image_statistics([images], 4))
    images = torch.cat([images, images.flip(-1)])
    stored = {name: value.clone() for name, value in stem.named_buffers() if "running" in name}
    for module in stem.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what it sees: this one batch
            module.reset_running_stats()
    with torch.no_grad():
        stem.train()(images)
    for name, value in stored.items():
        torch.testing.assert_close(stem.get_buffer(name), value, rtol=1e-3, atol=1e-4)
    assert relative_error(stem, weight, bias, images.double()) < 1e-3  # in train mode as well


def test_spare_channels_are_initialised_and_unread() -> None:
    weight, bias = filters(8, 3, 4)
    spec = StemSpec((20, 256))  # 12 contents; 48, split
    state, _ = transplant_stem(weight, bias, spec, low=[LOW] * 3, high=[HIGH] * 3)
    for index, used, fan_in in ((0, 12, 27), (1, 96, 180)):
        spare = state[f"{index}.conv.weight"][used:]
        assert float(spare.std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)
        assert state[f"{index}.bn.weight"][used:].eq(1).all()
        assert state[f"{index}.bn.bias"][used:].eq(0).all()
        assert state[f"{index}.bn.running_mean"].isfinite().all()
        assert state[f"{index}.bn.running_mean"][used:].ne(0).all()
        assert state[f"{index}.bn.running_var"].gt(0).all()
    assert state["1.conv.weight"][:96, 12:].eq(0).all()
    assert state["2.conv.weight"][:, 96:].eq(0).all()


def test_spare_statistics_resemble_real_ones() -> None:
    images = smooth_images(3, 128, count=8)
    weight, bias = filters(8, 3, 4)
    spec = StemSpec((20, 256))
    stem, _ = transplant(spec, weight, bias, statistics=image_statistics([images], 4), dtype=torch.float64)
    first, second = stem[0], stem[1]
    with torch.no_grad():
        response = second.conv(first(images))[:, 96:]
    deviation = response.var((0, 2, 3)).sqrt() / second.bn.running_var[96:].sqrt()
    offset = (response.mean((0, 2, 3)) - second.bn.running_mean[96:]) / second.bn.running_var[96:].sqrt()
    assert 0.5 < float(deviation.median()) < 2
    assert float(offset.abs().median()) < 1


def test_state_dict_layout() -> None:
    weight, bias = filters(10, 3, 4)
    weight.requires_grad_()
    spec = StemSpec((20, 64), kernel_sizes=(3, 5))
    state, _ = transplant_stem(weight, bias, spec, low=[LOW] * 3, high=[HIGH] * 3)
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    layers = [[f"{i}.conv.weight", *(f"{i}.bn.{name}" for name in norm)] for i in range(2)]
    assert list(state) == [*layers[0], *layers[1], "2.conv.weight", "2.conv.bias"]
    assert [tuple(state[f"{i}.conv.weight"].shape) for i in range(3)] == [
        (20, 3, 3, 3), (64, 20, 5, 5), (10, 64, 1, 1),
    ]  # fmt: skip
    for name, value in state.items():
        assert value.dtype == (torch.int64 if name.endswith("tracked") else torch.float32)
        assert value.device.type == "cpu"
        assert value.is_contiguous()
        assert not value.requires_grad


def test_deterministic_and_seeded() -> None:
    weight, bias = filters(10, 3, 4)
    spec = StemSpec((20, 64))
    one, two, other = (
        transplant_stem(weight, bias, spec, low=[LOW] * 3, high=[HIGH] * 3, seed=seed)[0] for seed in (3, 3, 4)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["0.conv.weight"][12:], other["0.conv.weight"][12:])
    assert torch.equal(one["0.conv.weight"][:12], other["0.conv.weight"][:12])


def test_inputs_and_global_state_are_left_alone() -> None:
    weight, bias = filters(10, 3, 4)
    low, high = torch.full((3,), LOW), torch.full((3,), HIGH)
    statistics = prior_statistics(4, 3)
    given = (weight, bias, low, high, statistics.mean, statistics.covariance)
    before = [tensor.clone() for tensor in given]
    generator_state = torch.get_rng_state()
    transplant_stem(weight, bias, StemSpec((20, 40)), low=low, high=high, statistics=statistics)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert torch.equal(torch.get_rng_state(), generator_state)


def test_weights_of_other_types() -> None:
    weight, bias = (tensor.to(torch.bfloat16) for tensor in filters(10, 3, 4))
    stem, _ = transplant(StemSpec((12, 48)), nn.Parameter(weight), nn.Parameter(bias))
    assert relative_error(stem, weight.double(), bias.double(), white_images(3, 16)) < 2e-6


def test_report() -> None:
    weight, bias = filters(100, 3, 8)
    _, report = transplant(StemSpec((24, 50, 64)), weight, bias, margin=0.5)
    first, second, third = report.layers
    assert (first.needed, first.rank, first.width, first.kind) == (12, 12, 24, "identity")
    assert (first.split, first.shift_min, first.shift_max) == (True, 0, 0)
    assert (second.needed, second.rank, second.width, second.split) == (48, 48, 50, False)
    assert (second.shift_min, second.shift_max) == (2.5, 2.5)  # the margin below -2
    assert (third.needed, third.rank, third.width, third.kind) == (192, 64, 64, "reduced")
    assert (first.lossless, second.lossless, third.lossless) == (True, True, False)
    assert third.shift_max > third.shift_min > 0
    assert not report.exact
    text = report.summary()
    assert text.startswith("The transplant is approximate for pixels in range: ")
    assert f"{report.predicted_relative_error:.1e}" in text
    assert "layer 0 is identity, 12 of 12 contents in 24 channels, split by sign" in text
    assert "layer 1 is identity, 48 of 48 contents in 50 channels, shifted by 2.5 to 2.5" in text
    assert "layer 2 is reduced, lossy, 64 of 192 contents in 64 channels, shifted by" in text
    assert "\n" not in text


def test_report_of_an_exact_split_stem() -> None:
    weight, bias = filters(10, 3, 4)
    text = transplant(StemSpec((24, 20)), weight, bias)[1].summary()
    assert text.startswith("The transplant is exact for every input: ")
    assert "layer 1 is embedding, lossless, 10 of 48 contents in 20 channels, split by sign" in text


ERRORS = [
    ({"spec": StemSpec((12, 48), act="gelu")}, "norm batchnorm2d and no bias, or norm none, and act relu; .*act gelu"),
    ({"spec": StemSpec((12, 48), norm="layernorm2d")}, "got norm layernorm2d, .*: choose another stem"),
    ({"spec": StemSpec((12, 48), bias=True)}, "got norm batchnorm2d, act relu, bias True"),
    ({"spec": StemSpec((12, 48, 192))}, r"\[2, 2, 2\] multiply to 8, patch_size is 4: change one"),
    ({"weight": torch.zeros(8, 3, 4, 5)}, r"square patches; got shape \[8, 3, 4, 5\]: resample"),
    ({"weight": torch.zeros(8, 48)}, r"\[embed_dim, in_chans, p, p\].*got shape \[8, 48\]"),
    ({"weight": torch.full((8, 3, 4, 4), math.nan)}, "weight must be finite; got NaN or infinity: check"),
    ({"bias": torch.full((8,), math.inf)}, "bias must be finite; got NaN or infinity: check"),
    ({"bias": torch.zeros(9)}, r"bias needs shape \[8\], one value for each filter; got \[9\]"),
    ({"low": [LOW]}, r"one value for each of 3 input channels; got \[-2.0\] and .*\(0 - mean\) / std"),
    ({"high": [HIGH] * 4}, "one value for each of 3 input channels"),
    ({"high": [HIGH, LOW, HIGH]}, "low must be below high in every channel, and both finite; got"),
    ({"low": [-math.inf] * 3}, "low must be below high in every channel, and both finite; got"),
    ({"margin": -0.1}, "margin must be zero or positive, and finite; got -0.1: 0.25 covers 8/255"),
    ({"margin": math.nan}, "margin must be zero or positive, and finite; got nan"),
    ({"shift": "min"}, "shift must be one of auto, box, data; got 'min'"),
    ({"statistics": prior_statistics(8, 3)}, "of 4 x 4 patches with 3 channels.*got 8 x 8 with 3: measure"),
    ({"statistics": prior_statistics(4, 1)}, "of 4 x 4 patches with 3 channels.*got 4 x 4 with 1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), ERRORS)
def test_errors(change: dict[str, object], message: str) -> None:
    weight, bias = filters(8, 3, 4)
    arguments = {"weight": weight, "bias": bias, "spec": StemSpec((12, 48)), **change}
    transplant(StemSpec((12, 48)), weight, bias)  # the valid neighbour
    with pytest.raises(ValueError, match=message):
        transplant(**arguments)
