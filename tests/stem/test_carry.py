"""A stem that carries a patch embedding is compared with the patch embedding."""

import math

import pytest
import torch
from torch import Tensor, nn

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemSpec, default_stem
from convstem.stem.carried import EVERY_INPUT, IN_RANGE, carried_by
from convstem.stem.carry import carry
from tests.support.everyday import mostly_in_ci
from tests.support.stem_transplants import (
    LOW,
    build_stem,
    filters,
    noise,
    relative_error,
    transplant,
    white_images,
)

STEMS = [
    # embed_dim, in_chans, stem: pixels in every layer
    pytest.param(8, 3, StemSpec((12,), (2,)), id="patch2"),
    pytest.param(40, 3, StemSpec((12, 48)), id="patch4-shifted"),
    pytest.param(40, 3, StemSpec((24, 96)), id="patch4-signed"),
    pytest.param(40, 3, StemSpec((13, 50)), id="patch4-spare"),
    pytest.param(40, 3, StemSpec((30, 70), norm="none"), id="patch4-no-norm"),
    pytest.param(40, 3, StemSpec((12, 48), norm="none"), id="patch4-no-norm-shifted"),
    pytest.param(60, 1, StemSpec((8, 16, 64)), id="patch8-grey"),
    pytest.param(60, 1, StemSpec((4, 32, 64)), id="patch8-signed-on-shifted"),
    pytest.param(100, 3, StemSpec((24, 96, 192)), id="patch8"),
    pytest.param(70, 2, StemSpec((8, 12, 40, 50, 128), (2, 1, 2, 1, 2)), id="patch8-stride-1"),
    pytest.param(300, 4, StemSpec((16, 64, 256), (2, 2, 2)), id="patch8-four-channels"),
    pytest.param(130, 1, StemSpec((4, 16, 64, 256)), id="patch16-grey"),
    pytest.param(400, 3, StemSpec((24, 48, 192, 768)), id="patch16"),
    pytest.param(48, 3, StemSpec((24, 96, 384, 1536)), id="patch16-signed"),
    pytest.param(101, 1, StemSpec((4, 200), (2, 7), (3, 13)), id="patch14-stride-7"),
    pytest.param(76, 1, StemSpec((4, 20, 150), (2, 2, 3), (3, 5, 5)), id="patch12-stride-3"),
    # the last convolution has its own taps
    pytest.param(40, 3, StemSpec((24,), last_kernel_size=3, last_stride=2), id="patch4-last-3x3"),
    pytest.param(40, 3, StemSpec((12, 48), last_kernel_size=3), id="patch4-last-3x3-stride-1"),
    pytest.param(300, 3, StemSpec((24, 48, 192), last_kernel_size=3, last_stride=2), id="patch16-ecvit"),
    pytest.param(20, 3, StemSpec((24, 96, 160), last_kernel_size=3, last_stride=2), id="embedding-last-3x3"),
    pytest.param(
        90, 3, StemSpec((96, 384), (4, 2), (4, 2), last_kernel_size=2, last_stride=2), id="patch16-mobileclip"
    ),
    # the embedding in the last layers
    pytest.param(20, 3, StemSpec((24, 40)), id="embedding-patch4"),
    pytest.param(20, 3, StemSpec((24, 60), norm="none"), id="embedding-patch4-spare"),
    pytest.param(20, 3, StemSpec((24, 40, 40), (2, 2, 1)), id="embedding-then-stride-1"),
    pytest.param(20, 3, StemSpec((12, 40)), id="embedding-on-shifted"),
    pytest.param(10, 3, StemSpec((24, 80, 20)), id="embedding-early"),
    pytest.param(10, 3, StemSpec((12, 80, 20), norm="none"), id="embedding-early-on-shifted"),
    pytest.param(30, 5, StemSpec((40, 160, 60)), id="embedding-five-channels"),
    pytest.param(48, 3, StemSpec((24, 96, 384, 96)), id="embedding-patch16"),
    pytest.param(24, 1, StemSpec((8, 48), (2, 7), (3, 13)), id="embedding-stride-7"),
]

DEFAULTS = [
    *((16, 192, 3), (8, 384, 3), (16, 192, 1)),
    *mostly_in_ci([(16, 768, 3), (16, 1024, 3), (8, 768, 3), (16, 192, 4), (8, 384, 13)], []),
]


def test_control_random_stem_differs() -> None:
    weight, bias = filters(40, 3, 4)
    stem, _ = transplant(StemSpec((12, 48)), weight, bias)
    assert relative_error(stem, weight, bias, white_images(3, 16)) < 1e-5
    torch.manual_seed(0)
    nn.init.normal_(stem.get_parameter("0.conv.weight"))
    assert relative_error(stem, weight, bias, white_images(3, 16)) > 0.1


@pytest.mark.parametrize(("embed_dim", "in_chans", "spec"), STEMS)
def test_a_stem_is_the_patch_embedding_where_its_report_says_so(embed_dim: int, in_chans: int, spec: StemSpec) -> None:
    weight, bias = filters(embed_dim, in_chans, spec.patch_size)
    stem, report = transplant(spec, weight, bias, dtype=torch.float64)
    inside, anywhere = white_images(in_chans, 3 * spec.patch_size, beyond=0.25), noise(in_chans, 2 * spec.patch_size)
    assert relative_error(stem, weight, bias, inside) < 1e-12
    assert (relative_error(stem, weight, bias, anywhere) < 1e-12) == (report.scope == EVERY_INPUT)
    assert carried_by(spec, embed_dim, in_chans) == report
    rounded, _ = transplant(spec, weight, bias)
    assert relative_error(rounded, weight, bias, inside) < 2e-6
    nn.init.normal_(next(stem[-2].parameters()))  # negative control
    assert relative_error(stem, weight, bias, inside) > 0.1


@pytest.mark.parametrize(("patch", "embed_dim", "in_chans"), DEFAULTS)
def test_default_stems_are_exact_for_every_input(patch: int, embed_dim: int, in_chans: int) -> None:
    weight, bias = filters(embed_dim, in_chans, patch)
    spec = default_stem(patch, embed_dim, in_chans)
    state, report = carry(weight, bias, spec, dtype=torch.float32)  # needs no pixel range
    assert report.scope == EVERY_INPUT
    assert relative_error(build_stem(state, spec), weight, bias, noise(in_chans, 2 * patch)) < 2e-6
    once = StemSpec(tuple(in_chans * 4 ** (k + 1) for k in range(len(spec.channels))))  # negative control: shifted
    assert relative_error(transplant(once, weight, bias)[0], weight, bias, noise(in_chans, 2 * patch)) > 1e-2


def test_the_default_stem_at_patch_32_is_exact_for_pixels_in_range() -> None:
    weight, bias = filters(384, 3, 32)
    stem, report = transplant(default_stem(32, 384), weight, bias)
    assert report.scope == IN_RANGE
    assert relative_error(stem, weight, bias, white_images(3, 64, beyond=0.25)) < 5e-6
    assert relative_error(stem, weight, bias, 3 * white_images(3, 64)) > 1e-2


def test_the_last_convolution_is_plus_and_minus_identity() -> None:
    weight, bias = filters(48, 3, 16)
    stem, _ = transplant(StemSpec((24, 96, 384, 96)), weight, bias)
    identity = torch.eye(48)
    torch.testing.assert_close(stem[4].conv.weight[:, :, 0, 0], torch.cat([identity, -identity], 1))
    torch.testing.assert_close(stem[4].conv.bias, bias.float())


@pytest.mark.parametrize(
    ("widths", "factor"), [((24, 96, 384, 1536), 1.01), ((24, 96, 384, 384), 1.5), ((24, 48, 192, 768), 5)]
)
@pytest.mark.parametrize("norm", ["none", "batchnorm2d"])
def test_bfloat16_costs_what_it_costs_the_patch_embedding(widths: tuple[int, ...], factor: float, norm: str) -> None:
    """Pixels with both signs lose nothing, the embedding one more rounding of the output, shifts several bits."""
    weight, bias = filters(192, 3, 16)
    images = white_images(3, 64)
    plain = nn.Sequential(nn.Sequential())
    plain[0].add_module("conv", nn.Conv2d(3, 192, 16, 16))
    plain[0].conv.load_state_dict({"weight": weight, "bias": bias})
    stem, _ = transplant(StemSpec(widths, norm=norm), weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        source = relative_error(plain, weight, bias, images)
        assert 1e-3 < source < relative_error(stem, weight, bias, images) * 1.01
        assert relative_error(stem, weight, bias, images) < factor * source


def test_margin_is_what_keeps_pixels_beyond_the_range() -> None:
    weight, bias = filters(8, 3, 4)
    beyond = white_images(3, 16, beyond=0.25)
    narrow, _ = transplant(StemSpec((12, 16)), weight, bias, margin=0)
    assert relative_error(narrow, weight, bias, beyond) > 1e-3
    assert relative_error(narrow, weight, bias, white_images(3, 16)) < 2e-6
    wide, _ = transplant(StemSpec((12, 16)), weight, bias, margin=0.25)
    assert relative_error(wide, weight, bias, beyond) < 2e-6


def test_channels_have_their_own_range() -> None:
    weight, bias = filters(8, 2, 4)
    images = white_images(2, 16) * torch.tensor([1.0, 20.0]).view(2, 1, 1)
    for spec in (StemSpec((8, 32)), StemSpec((8, 16)), StemSpec((8, 8, 32), (2, 1, 2))):
        stem, _ = transplant(spec, weight, bias, low=torch.tensor([LOW, 20 * LOW]), margin=0.0)
        assert relative_error(stem, weight, bias, images) < 2e-6
        stem, _ = transplant(spec, weight, bias, margin=0.0)  # negative control: one range for both
        assert relative_error(stem, weight, bias, images) > 1e-2


@pytest.mark.parametrize("norm", ["none", "batchnorm2d"])
def test_weights_of_other_types(norm: str) -> None:
    spec = StemSpec((12, 16), norm=norm)
    weight, bias = (tensor.to(torch.bfloat16) for tensor in filters(10, 1, 4))
    stem, _ = transplant(spec, nn.Parameter(weight), nn.Parameter(bias))
    assert relative_error(stem, weight.double(), bias.double(), white_images(1, 16)) < 2e-6
    state, _ = carry(weight, bias, spec, [LOW])
    assert {tensor.dtype for name, tensor in state.items() if "tracked" not in name} == {torch.bfloat16}
    exact = {name: tensor.double() if "tracked" not in name else tensor for name, tensor in state.items()}
    assert relative_error(build_stem(exact, spec), weight.double(), bias.double(), white_images(1, 16)) < 5e-3


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_missing_bias_is_zero(memory_format: torch.memory_format) -> None:
    weight, bias = filters(8, 3, 4)
    weight = weight.contiguous(memory_format=memory_format)
    stem, _ = transplant(StemSpec((12, 16)), weight, None)
    assert relative_error(stem, weight, None, white_images(3, 16)) < 2e-6
    zero, _ = transplant(StemSpec((12, 16)), weight, torch.zeros_like(bias))
    assert torch.equal(stem.get_parameter("2.conv.bias"), zero.get_parameter("2.conv.bias"))


@pytest.mark.parametrize("widths", [(12, 48), (24, 20)])
def test_degenerate_filters(widths: tuple[int, ...]) -> None:
    weight, bias = filters(10, 3, 4)
    weight[:3] = 0
    weight[3:6] = weight[6]
    stem, _ = transplant(StemSpec(widths), weight, bias, dtype=torch.float64)
    assert relative_error(stem, weight, bias, white_images(3, 16)) < 1e-12
    stem, _ = transplant(StemSpec(widths), torch.zeros_like(weight), bias)
    assert relative_error(stem, torch.zeros_like(weight), bias, white_images(3, 16)) < 1e-6


def neighbourly(count: int, size: int) -> Tensor:
    """Images [count, 3, size, size] with the mean, variance and correlations that a BatchNorm's statistics assume."""
    generator = torch.Generator().manual_seed(3)
    own = torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
    common = torch.randn(count, 1, size, size, generator=generator, dtype=torch.float64)
    steps = torch.arange(size, dtype=torch.float64)
    factor = torch.linalg.cholesky(0.9 ** (steps[:, None] - steps).abs())
    return factor @ (math.sqrt(0.1) * own + math.sqrt(0.9) * common) @ factor.T * math.sqrt(1.25)


def test_a_batchnorm_has_the_statistics_of_what_it_sees() -> None:
    weight, bias = filters(30, 3, 4)
    weight[:10], weight[10:20, :, ::2] = weight[:10].abs(), -weight[10:20, :, 1::2]  # smooth filters and edges
    stem, _ = transplant(StemSpec((12, 60)), weight, bias, low=[-9.0] * 3, dtype=torch.float64)
    images = neighbourly(64, 64)
    stored = {name: value.clone() for name, value in stem.named_buffers() if "running" in name}
    for module in stem.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over batches: this one
            module.reset_running_stats()
    with torch.no_grad():
        stem.train()(images)
    for name, value in stored.items():
        seen = stem.get_buffer(name)
        scale = stored[name.replace("mean", "var")].sqrt() if name.endswith("mean") else value
        assert float(((seen - value) / scale).abs().max()) < 0.2
    assert relative_error(stem, weight, bias, images) < 0.1  # also in training mode
    assert relative_error(stem, weight, bias, noise(3, 64)) > 0.3  # negative control: other statistics


def test_spare_channels_are_initialised_and_unread() -> None:
    weight, bias = filters(8, 3, 4)
    state, _ = carry(weight, bias, StemSpec((20, 256)), [LOW] * 3)  # 12 values, then 48 with both signs
    for index, used, fan_in in ((0, 12, 27), (1, 96, 180)):
        spare = state[f"{index}.conv.weight"][used:]
        assert float(spare.std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)
        assert state[f"{index}.bn.weight"][used:].eq(1).all()
        assert state[f"{index}.bn.bias"][used:].eq(0).all()
        assert state[f"{index}.bn.running_mean"][used:].eq(0).all()
        torch.testing.assert_close(state[f"{index}.bn.running_var"][used:] + 1e-5, torch.ones_like(spare[:, 0, 0, 0]))
    assert state["1.conv.weight"][:96, 12:].eq(0).all()
    assert state["2.conv.weight"][:, 96:].eq(0).all()


@pytest.mark.parametrize("norm", ["batchnorm2d", "frozen_bn", "none"])
def test_state_dict_layout(norm: str) -> None:
    weight, bias = filters(10, 3, 4)
    weight.requires_grad_()
    state, _ = carry(weight, bias, StemSpec((20, 64), kernel_sizes=(3, 5), norm=norm), [LOW] * 3, dtype=torch.float32)
    statistics = [f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    counted = [*statistics, "bn.num_batches_tracked"]
    after = {"batchnorm2d": counted, "frozen_bn": statistics, "none": ["conv.bias"]}[norm]
    layers = [f"{index}.{name}" for index in range(2) for name in ("conv.weight", *after)]
    assert list(state) == [*layers, "2.conv.weight", "2.conv.bias"]
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
    spec, low = StemSpec((20, 64)), [LOW] * 3
    one, two, other = (carry(weight, bias, spec, low, seed=seed)[0] for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["0.conv.weight"][12:], other["0.conv.weight"][12:])
    assert torch.equal(one["0.conv.weight"][:12], other["0.conv.weight"][:12])


def test_inputs_and_global_state_are_left_alone() -> None:
    weight, bias = filters(10, 3, 4)
    low = torch.full((3,), LOW)
    given = (weight, bias, low)
    before = [tensor.clone() for tensor in given]
    generator_state = torch.get_rng_state()
    state, _ = carry(weight, bias, StemSpec((20, 64)), low)
    for value in state.values():
        value.zero_()  # the result shares no memory with the arguments
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert torch.equal(torch.get_rng_state(), generator_state)


@pytest.mark.parametrize("norm", ["batchnorm2d", "none"])
@pytest.mark.parametrize("around", ["meta", torch.float64, torch.bfloat16])
def test_default_device_and_type_change_nothing(norm: str, around: str | torch.dtype) -> None:
    weight, bias = (tensor.float() for tensor in filters(10, 3, 4))
    spec = StemSpec((13, 30), norm=norm)

    def compute() -> dict[str, Tensor]:
        return carry(weight, bias, spec, [-2.1, -2.2, -2.3])[0]

    expected = compute()
    if isinstance(around, str):
        with torch.device(around):
            found = compute()
    else:
        torch.set_default_dtype(around)
        try:
            found = compute()
        finally:
            torch.set_default_dtype(torch.float32)
    assert [(tensor.device.type, tensor.dtype) for tensor in found.values()] == [
        (tensor.device.type, tensor.dtype) for tensor in expected.values()
    ]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


ERRORS = [
    ({"stem": StemSpec((12, 48), act="gelu")}, "batchnorm2d or frozen_bn and no bias, or norm none, .*act gelu"),
    ({"stem": StemSpec((12, 48), norm="layernorm2d")}, "got norm layernorm2d, .*: choose another stem"),
    ({"stem": StemSpec((12, 48), bias=True)}, "got norm batchnorm2d, act relu, bias True"),
    ({"stem": StemSpec((12, 48, 192))}, r"\[2, 2, 2\] multiply to 8, patch_size is 4: change one"),
    ({"weight": torch.zeros(8, 3, 4, 5)}, r"square patches; got shape \[8, 3, 4, 5\]: resample"),
    ({"weight": torch.zeros(8, 48)}, r"\[embed_dim, in_chans, p, p\].*got shape \[8, 48\]"),
    ({"weight": torch.zeros(8, 0, 4, 4)}, r"at least one input channel and one filter, .*; got shape \[8, 0, 4, 4\]"),
    ({"weight": torch.zeros(0, 3, 4, 4)}, "at least one input channel and one filter"),
    ({"weight": torch.zeros(8, 3, 4, 4, dtype=torch.int8)}, "of floating-point numbers; got .*int8: convert"),
    ({"weight": torch.zeros(8, 3, 4, 4, device="meta")}, "weight is on the meta device, .*load the model's weights"),
    ({"weight": torch.full((8, 3, 4, 4), math.nan)}, "weight must be finite; got NaN or infinity: check"),
    ({"bias": torch.full((8,), math.inf)}, "bias must be finite; got NaN or infinity: check"),
    ({"bias": torch.zeros(9)}, r"bias needs shape \[8\], one value for each filter; got \[9\]"),
    ({"low": None}, r"range of the 3 input channels is unknown, and 12 channels .*pass pixel_range=\(low, high\)"),
    ({"low": [LOW]}, r"low needs one finite value for each of 3 input channels, \(0 - mean\) / std; got \[-2.0\]"),
    ({"low": "abc"}, "low needs one finite value for each of 3 input channels"),
    ({"low": [-math.inf] * 3}, "low needs one finite value for each of 3 input channels"),
    ({"margin": -0.1}, "margin must be zero or positive, and finite; got -0.1: 0.25 covers 8/255"),
    ({"margin": math.nan}, "margin must be zero or positive, and finite; got nan"),
    ({"margin": "x"}, "margin must be zero or positive, and finite; got 'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), ERRORS)
def test_errors(change: dict[str, object], message: str) -> None:
    weight, bias = filters(8, 3, 4)
    arguments = {"weight": weight, "bias": bias, "stem": StemSpec((12, 48)), "low": [LOW] * 3}
    carry(**arguments)  # the valid neighbour
    with pytest.raises(ArgumentError, match=message):
        carry(**{**arguments, **change})


def test_high_pixels_need_no_bound() -> None:
    weight, bias = filters(8, 3, 4)
    images = white_images(3, 16) - LOW  # starting at zero
    stem, _ = transplant(StemSpec((12, 16)), weight, bias, low=[0.0] * 3)
    assert relative_error(stem, weight, bias, 100 * images) < 2e-6
    assert relative_error(stem, weight, bias, -images) > 0.1
