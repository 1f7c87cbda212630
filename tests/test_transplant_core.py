"""The transplant of a patch embedding into a conv stem, against the patch embedding itself."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convstem.specs import StemSpec
from convstem.statistics import (
    PatchStatistics,
    image_statistics,
    prior_statistics,
    sub_covariance,
    sub_mean,
)
from convstem.transplant_core import TransplantReport, transplant_stem
from convstem.transplant_plan import balance, pivots

LOW, HIGH = -2.0, 2.5
"""Pixel range in every channel of the images below."""

BN_EPS = 1e-5


def filters(embed_dim: int, in_chans: int, patch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(embed_dim, in_chans, patch, patch, generator=generator, dtype=torch.float64)
    return weight, torch.randn(embed_dim, generator=generator, dtype=torch.float64)


def white_images(in_chans: int, size: int, beyond: float = 0.0) -> Tensor:
    """Independent uniform pixels: no help from smoothness. ``beyond`` widens the range on both sides."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, in_chans, size, size + size, generator=generator, dtype=torch.float64)
    pixels[0, :, :2, :2], pixels[0, :, -2:, -2:] = 0, 1  # the ends of the range themselves
    return LOW - beyond + pixels * (HIGH - LOW + 2 * beyond)


def smooth_images(in_chans: int, size: int, count: int = 2) -> Tensor:
    """White noise blurred at several scales, within the pixel range: like photographs in power spectrum."""
    generator = torch.Generator().manual_seed(2)
    total = torch.zeros(count, in_chans, size, size, dtype=torch.float64)
    for scale in (1, 2, 4, 8):
        coarse = torch.randn(count, in_chans, size // scale, size // scale, generator=generator).double()
        total += scale * F.interpolate(coarse, size=(size, size), mode="bilinear")
    return (total / total.std()).clamp(LOW, HIGH)


def build_stem(state: dict[str, Tensor], spec: StemSpec, bn_eps: float = BN_EPS) -> nn.Sequential:
    """Build the stem of plain torch modules with these parameters, in eval mode and in their type."""
    layers: dict[str, nn.Module] = {}
    channels = state["0.conv.weight"].shape[1]
    for width, stride, kernel in zip(spec.channels, spec.strides, spec.kernel_sizes, strict=True):
        conv = nn.Conv2d(channels, width, kernel, stride, (kernel - 1) // 2, bias=False)
        parts = {"conv": conv, "bn": nn.BatchNorm2d(width, bn_eps), "act": nn.ReLU()}
        layers[str(len(layers))] = nn.Sequential()
        for name, part in parts.items():
            layers[str(len(layers) - 1)].add_module(name, part)
        channels = width
    last = nn.Sequential()
    last.add_module("conv", nn.Conv2d(channels, len(state[f"{len(layers)}.conv.bias"]), 1))
    layers[str(len(layers))] = last
    stem = nn.Sequential()
    for name, layer in layers.items():
        stem.add_module(name, layer)
    stem.to(state["0.conv.weight"].dtype).load_state_dict(state, strict=True)
    return stem.eval()


def transplant(
    spec: StemSpec, weight: Tensor, bias: Tensor | None, **options: object
) -> tuple[nn.Sequential, TransplantReport]:
    in_chans = weight.shape[1]
    arguments = {"low": [LOW] * in_chans, "high": [HIGH] * in_chans, **options}
    state, report = transplant_stem(weight, bias, spec, **arguments)  # type: ignore[arg-type]
    return build_stem(state, spec, float(arguments.get("bn_eps", BN_EPS))), report  # type: ignore[arg-type]


@torch.no_grad()
def relative_error(stem: nn.Sequential, weight: Tensor, bias: Tensor | None, images: Tensor) -> float:
    expected = F.conv2d(images, weight, bias, stride=weight.shape[-1])
    got = stem(images.to(stem[-1].conv.weight.dtype)).double()
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm())


IDENTITY = [
    # embed_dim, in_chans, stem
    pytest.param(8, 3, StemSpec((12,), (2,)), id="patch2"),
    pytest.param(40, 3, StemSpec((12, 48)), id="patch4-shift"),
    pytest.param(40, 3, StemSpec((24, 96)), id="patch4-split"),
    pytest.param(40, 3, StemSpec((13, 50)), id="patch4-one-spare"),
    pytest.param(40, 1, StemSpec((8, 16, 64)), id="patch8-grey"),
    pytest.param(96, 3, StemSpec((24, 96, 192)), id="patch8"),
    pytest.param(40, 2, StemSpec((8, 12, 40, 50, 128), (2, 1, 2, 1, 2)), id="patch8-stride-1"),
    pytest.param(300, 4, StemSpec((16, 64, 256), (2, 2, 2)), id="patch8-four-channels"),
    pytest.param(64, 1, StemSpec((4, 16, 64, 256)), id="patch16-grey"),
    pytest.param(48, 3, StemSpec((24, 48, 192, 768)), id="patch16"),
    pytest.param(48, 1, StemSpec((4, 200), (2, 7), (3, 13)), id="patch14-stride-7"),
    pytest.param(48, 1, StemSpec((4, 20, 150), (2, 2, 3), (3, 5, 5)), id="patch12-stride-3"),
]

LOSSLESS = [
    # reduced to embed_dim or more channels: as exact, at the cost of a larger shift
    pytest.param(20, 3, StemSpec((12, 20)), id="patch4-embed-dim"),
    pytest.param(20, 3, StemSpec((12, 24)), id="patch4-some-spare"),
    pytest.param(20, 3, StemSpec((12, 40)), id="patch4-split"),
    pytest.param(10, 3, StemSpec((12, 40, 30), (2, 2, 1)), id="patch4-early-reduction"),
    pytest.param(48, 1, StemSpec((8, 16, 64, 48)), id="patch16-grey"),
    pytest.param(5, 3, StemSpec((5,), (4,), (7,)), id="one-layer"),
]


def test_control_random_stem_differs() -> None:
    weight, bias = filters(40, 3, 4)
    stem, _ = transplant(StemSpec((12, 48)), weight, bias)
    assert relative_error(stem, weight, bias, white_images(3, 16)) < 1e-5
    torch.manual_seed(0)
    nn.init.normal_(stem[0].conv.weight)
    assert relative_error(stem, weight, bias, white_images(3, 16)) > 0.1


@pytest.mark.parametrize(("embed_dim", "in_chans", "spec"), IDENTITY)
def test_identity_is_exact(embed_dim: int, in_chans: int, spec: StemSpec) -> None:
    weight, bias = filters(embed_dim, in_chans, spec.patch_size)
    images = white_images(in_chans, 3 * spec.patch_size, beyond=0.25)
    stem, report = transplant(spec, weight, bias, dtype=torch.float64)
    assert relative_error(stem, weight, bias, images) < 1e-12
    assert report.exact
    assert {layer.kind for layer in report.layers} == {"identity"}
    assert report.predicted_relative_error == 0
    stem, _ = transplant(spec, weight, bias)
    assert relative_error(stem, weight, bias, images) < 2e-6


@pytest.mark.parametrize(("embed_dim", "in_chans", "spec"), LOSSLESS)
def test_lossless_reduction_is_exact(embed_dim: int, in_chans: int, spec: StemSpec) -> None:
    weight, bias = filters(embed_dim, in_chans, spec.patch_size)
    images = white_images(in_chans, 3 * spec.patch_size, beyond=0.25)
    stem, report = transplant(spec, weight, bias, dtype=torch.float64)
    assert relative_error(stem, weight, bias, images) < 1e-10
    assert report.exact
    assert "reduced" in {layer.kind for layer in report.layers}
    assert report.predicted_relative_error < 1e-10
    stem, _ = transplant(spec, weight, bias)
    assert relative_error(stem, weight, bias, images) < 2e-5


def test_split_stem_holds_beyond_the_pixel_range() -> None:
    weight, bias = filters(8, 3, 4)
    far = 100 * white_images(3, 16)
    split, report = transplant(StemSpec((24, 96)), weight, bias, dtype=torch.float64)
    assert all(layer.split for layer in report.layers)
    assert relative_error(split, weight, bias, far) < 1e-12
    shifted, report = transplant(StemSpec((12, 48)), weight, bias, dtype=torch.float64)
    assert not any(layer.split for layer in report.layers)
    assert relative_error(shifted, weight, bias, far) > 0.1


def test_margin_is_what_keeps_pixels_beyond_the_range() -> None:
    weight, bias = filters(8, 3, 4)
    beyond = white_images(3, 16, beyond=0.25)
    narrow, _ = transplant(StemSpec((12, 48)), weight, bias, margin=0)
    assert relative_error(narrow, weight, bias, beyond) > 1e-3
    assert relative_error(narrow, weight, bias, white_images(3, 16)) < 2e-6
    wide, _ = transplant(StemSpec((12, 48)), weight, bias, margin=0.25)
    assert relative_error(wide, weight, bias, beyond) < 2e-6


def test_channels_have_their_own_range() -> None:
    weight, bias = filters(8, 2, 4)
    images = white_images(2, 16) * torch.tensor([1.0, 20.0]).view(2, 1, 1)
    options = {"low": [LOW, 20 * LOW], "high": [HIGH, 20 * HIGH], "margin": 0.0}
    stem, report = transplant(StemSpec((8, 32)), weight, bias, **options)
    assert relative_error(stem, weight, bias, images) < 2e-6
    assert (report.layers[0].shift_min, report.layers[0].shift_max) == pytest.approx((-LOW, -20 * LOW))


@pytest.mark.parametrize("widths", [(12, 32), (12, 30, 60), (8, 16, 64), (12, 48, 40)])
def test_lossy_error_is_predicted(widths: tuple[int, ...]) -> None:
    spec = StemSpec(widths)
    images = smooth_images(3, 16 * spec.patch_size, count=8)
    statistics = image_statistics([images], spec.patch_size)
    weight, bias = filters(100, 3, spec.patch_size)
    stem, report = transplant(spec, weight, bias, statistics=statistics, dtype=torch.float64)
    mirrored = torch.cat([images, images.flip(-1)])
    assert not report.exact
    assert 1e-3 < report.predicted_relative_error < 0.5
    assert relative_error(stem, weight, bias, mirrored) == pytest.approx(report.predicted_relative_error, 1e-3)


def test_wider_stems_lose_less() -> None:
    weight, bias = filters(64, 3, 8)
    images = smooth_images(3, 64)
    stems = [transplant(StemSpec((12, 48, width)), weight, bias)[0] for width in (8, 16, 32, 64)]
    errors = [relative_error(stem, weight, bias, images) for stem in stems]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 < errors[-2]


def test_reduction_beats_a_random_subspace_of_the_same_width() -> None:
    weight, bias = filters(48, 1, 8)
    images = smooth_images(1, 64)
    _, report = transplant(StemSpec((4, 16, 24)), weight, bias, statistics=image_statistics([images], 8))
    flat = F.unfold(images, 8, stride=8).transpose(1, 2).reshape(-1, 64)
    projection = torch.linalg.qr(torch.randn(64, 24, generator=torch.Generator().manual_seed(0)).double()).Q
    known = torch.cat([flat @ projection, torch.ones(len(flat), 1)], 1)
    target = flat @ weight.flatten(1).T + bias
    random_error = (known @ torch.linalg.lstsq(known, target).solution - target).norm() / target.norm()
    assert report.predicted_relative_error < 0.5 * random_error


def test_data_shift_trades_exactness_for_bfloat16() -> None:
    weight, bias = filters(96, 3, 8)
    images = smooth_images(3, 64, count=8)
    options = {"statistics": image_statistics([images], 8), "dtype": torch.bfloat16}
    spec = StemSpec((12, 48, 96))
    box, box_report = transplant(spec, weight, bias, shift="box", **options)
    data, data_report = transplant(spec, weight, bias, shift="data", **options)
    assert data_report.layers[:-1] == box_report.layers[:-1]
    assert (box_report.exact, data_report.exact) == (True, False)
    last = data_report.layers[-1]
    assert (last.split, last.shift_min) == (False, 0)  # some contents are carried with both signs
    assert last.rank < last.width == 96
    assert last.shift_max < box_report.layers[-1].shift_max
    assert relative_error(data, weight, bias, images) < 0.3 * relative_error(box, weight, bias, images)


def test_data_shift_is_not_called_exact_where_contents_may_be_cut_off() -> None:
    weight, bias = filters(20, 3, 8)
    reports = [transplant(StemSpec((12, 48, width)), weight, bias, shift="data")[1] for width in (39, 40, 192)]
    assert [report.layers[-1].lossless for report in reports] == [True, True, True]
    assert [report.exact for report in reports] == [False, True, True]  # shifted, split, identity


def test_balance_of_pairs_and_components() -> None:
    steep = 10.0 ** -torch.arange(20.0, dtype=torch.float64)
    rank, paired = balance(steep, 12)
    assert rank + paired == 12
    assert 0 < paired < rank
    assert balance(torch.ones(20, dtype=torch.float64), 12) == (12, 0)  # all matter: none is given up
    assert balance(steep[:5], 12) == (5, 5)  # room for all
    assert balance(steep[:8], 12)[0] + balance(steep[:8], 12)[1] == 12


@pytest.mark.parametrize(("dtype", "shift"), [(torch.float32, "box"), (torch.bfloat16, "data")])
def test_auto_shift_follows_the_dtype(dtype: torch.dtype, shift: str) -> None:
    weight, bias = filters(16, 3, 8)
    spec = StemSpec((12, 48, 16))
    automatic, chosen = (transplant(spec, weight, bias, dtype=dtype, shift=s) for s in ("auto", shift))
    assert automatic[1] == chosen[1]
    assert automatic[0][2].bn.bias.dtype == dtype


def test_missing_bias_is_zero() -> None:
    weight, bias = filters(8, 3, 4)
    stem, _ = transplant(StemSpec((12, 48)), weight, None)
    assert relative_error(stem, weight, None, white_images(3, 16)) < 2e-6
    zero, _ = transplant(StemSpec((12, 48)), weight, torch.zeros_like(bias))
    assert torch.equal(stem[2].conv.bias, zero[2].conv.bias)


@pytest.mark.parametrize("widths", [(12, 48), (12, 8)])
def test_degenerate_filters(widths: tuple[int, ...]) -> None:
    weight, bias = filters(10, 3, 4)
    weight[:3] = 0
    weight[3:6] = weight[6]
    stem, report = transplant(StemSpec(widths), weight, bias, dtype=torch.float64)
    assert report.exact  # five independent filters
    assert relative_error(stem, weight, bias, white_images(3, 16)) < 1e-10
    stem, report = transplant(StemSpec(widths), torch.zeros_like(weight), bias)
    assert relative_error(stem, torch.zeros_like(weight), bias, white_images(3, 16)) < 1e-6


def test_batch_norm_is_calibrated() -> None:
    images = smooth_images(3, 128, count=8).float()
    weight, bias = filters(8, 3, 4)
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


def test_batch_norm_epsilon() -> None:
    weight, bias = filters(8, 3, 4)
    stem, _ = transplant(StemSpec((12, 48)), weight, bias, bn_eps=0.1, dtype=torch.float64)
    assert relative_error(stem, weight, bias, white_images(3, 16)) < 1e-12


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
    assert "layer 1 is reduced, lossless, 10 of 48 contents in 20 channels, split by sign" in text


ERRORS = [
    ({"spec": StemSpec((12, 48), act="gelu")}, "norm batchnorm2d, act relu and no bias; got .*act gelu"),
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
        transplant(**arguments)  # type: ignore[arg-type]


def test_prior_statistics() -> None:
    statistics = prior_statistics(8, 3)
    assert (statistics.in_chans, statistics.patch_size) == (3, 8)
    assert statistics.mean.eq(0).all()
    assert statistics.covariance.dtype == torch.float64
    torch.testing.assert_close(statistics.covariance, statistics.covariance.T)
    assert torch.linalg.eigvalsh(statistics.covariance)[0] > 1e-4
    pixels = statistics.covariance.view(3, 8, 8, 3, 8, 8)
    neighbour, far, other_colour = (
        pixels[0, 0, 0, 0, 0, 1],
        pixels[0, 0, 0, 0, 7, 7],
        pixels[0, 0, 0, 1, 0, 0],
    )
    assert pixels[0, 0, 0, 0, 0, 0] > neighbour > far > 0
    assert float(other_colour) == pytest.approx(0.9 * 1.25)
    assert prior_statistics(8, 3) is statistics  # computed once


def test_image_statistics_match_a_direct_count() -> None:
    images = smooth_images(2, 20, count=3)
    statistics = image_statistics([images[:1], images[1:]], 8)
    cropped = images[..., :16, :16]
    both = torch.cat([cropped, cropped.flip(-1)])
    patches = both.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 128)
    torch.testing.assert_close(statistics.mean.flatten(), patches.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics.covariance, patches.T.cov(correction=0), rtol=1e-5, atol=1e-6)


def test_sub_blocks_match_smaller_patches() -> None:
    images = smooth_images(2, 32)
    whole, quarter = image_statistics([images], 8), image_statistics([images], 4)
    torch.testing.assert_close(sub_mean(whole, 4), quarter.mean)
    outer_whole = sub_covariance(whole, 4)
    # the mean of the blocks' covariances leaves out how the blocks' means differ, which is small
    torch.testing.assert_close(outer_whole, quarter.covariance, rtol=0.05, atol=0.02)
    torch.testing.assert_close(sub_covariance(whole, 8), whole.covariance)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no image holds a whole 8 x 8 patch: pass larger images"),
        ([torch.zeros(1, 3, 7, 100)], "no image holds a whole 8 x 8 patch"),
        ([torch.zeros(3, 8, 8)], r"need tensors \[N, in_chans, H, W\]; got \[3, 8, 8\]"),
        (
            [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)],
            r"need tensors \[N, 3, H, W\]; got \[1, 1, 8, 8\]",
        ),
        ([torch.full((1, 3, 8, 8), math.nan)], "must be finite; got NaN"),
    ],
)
def test_image_statistics_errors(batches: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_statistics(batches, 8)


def test_statistics_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"got shapes \[3, 4, 4\] and \[4, 4\]"):
        PatchStatistics(torch.zeros(3, 4, 4), torch.zeros(4, 4))


def test_statistics_of_few_images_suffice() -> None:
    weight, bias = filters(20, 3, 4)
    images = smooth_images(3, 8, count=1)  # eight patches: a covariance of rank seven at most
    stem, report = transplant(StemSpec((12, 20)), weight, bias, statistics=image_statistics([images], 4))
    assert report.exact
    assert relative_error(stem, weight, bias, white_images(3, 16)) < 1e-3


def test_pivots_span() -> None:
    matrix = torch.randn(30, 10, generator=torch.Generator().manual_seed(0)).double()
    matrix[5:15] = matrix[:1]  # of which at most one is worth taking
    rows = pivots(matrix)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 10
    assert torch.linalg.cond(matrix[rows]) < 100
