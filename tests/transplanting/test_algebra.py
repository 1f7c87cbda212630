"""The transplant of a patch embedding into a conv stem, against the patch embedding itself."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convstem.registry.stem_spec import StemSpec, default_stem, scope
from convstem.transplanting.reduction import balance, pivots
from convstem.transplanting.statistics import image_statistics
from tests.support.everyday import mostly_in_ci
from tests.support.stem_transplants import HIGH, LOW, filters, relative_error, smooth_images, transplant, white_images

IDENTITY = [
    # embed_dim, in_chans, stem
    pytest.param(8, 3, StemSpec((12,), (2,)), id="patch2"),
    pytest.param(40, 3, StemSpec((12, 48)), id="patch4-shift"),
    pytest.param(40, 3, StemSpec((24, 96)), id="patch4-split"),
    pytest.param(40, 3, StemSpec((13, 50)), id="patch4-one-spare"),
    pytest.param(60, 1, StemSpec((8, 16, 64)), id="patch8-grey"),
    pytest.param(100, 3, StemSpec((24, 96, 192)), id="patch8"),
    pytest.param(70, 2, StemSpec((8, 12, 40, 50, 128), (2, 1, 2, 1, 2)), id="patch8-stride-1"),
    pytest.param(300, 4, StemSpec((16, 64, 256), (2, 2, 2)), id="patch8-four-channels"),
    pytest.param(130, 1, StemSpec((4, 16, 64, 256)), id="patch16-grey"),
    pytest.param(400, 3, StemSpec((24, 48, 192, 768)), id="patch16"),
    pytest.param(48, 3, StemSpec((24, 96, 384, 1536)), id="patch16-split"),
    pytest.param(101, 1, StemSpec((4, 200), (2, 7), (3, 13)), id="patch14-stride-7"),
    pytest.param(76, 1, StemSpec((4, 20, 150), (2, 2, 3), (3, 5, 5)), id="patch12-stride-3"),
]

LOSSLESS = [
    # reduced to embed_dim or more channels: as exact, at the cost of a larger shift
    pytest.param(20, 3, StemSpec((12, 20)), id="patch4-embed-dim"),
    pytest.param(20, 3, StemSpec((12, 24)), id="patch4-some-spare"),
    pytest.param(21, 3, StemSpec((12, 40, 30), (2, 2, 1)), id="patch4-early-reduction"),
    pytest.param(48, 1, StemSpec((8, 16, 64, 48)), id="patch16-grey"),
    pytest.param(5, 3, StemSpec((5,), (4,), (7,)), id="one-layer"),
]


EMBEDDING = [
    # the embedding itself with both signs, where that fits and two copies of every pixel do not
    pytest.param(20, 3, StemSpec((24, 40)), id="patch4"),
    pytest.param(20, 3, StemSpec((24, 60)), id="patch4-spare"),
    pytest.param(20, 3, StemSpec((24, 40, 40), (2, 2, 1)), id="patch4-then-stride-1"),
    pytest.param(10, 3, StemSpec((24, 80, 20)), id="patch8-early"),
    pytest.param(30, 5, StemSpec((40, 160, 60)), id="patch8-five-channels"),
    pytest.param(48, 3, StemSpec((24, 96, 384, 96)), id="patch16"),
    pytest.param(24, 1, StemSpec((8, 48), (2, 7), (3, 13)), id="patch14-stride-7"),
]


def test_control_random_stem_differs() -> None:
    weight, bias = filters(40, 3, 4)
    stem, _ = transplant(StemSpec((12, 48)), weight, bias)
    assert relative_error(stem, weight, bias, white_images(3, 16)) < 1e-5
    torch.manual_seed(0)
    nn.init.normal_(stem.get_parameter("0.conv.weight"))
    assert relative_error(stem, weight, bias, white_images(3, 16)) > 0.1


@pytest.mark.parametrize(("embed_dim", "in_chans", "spec"), IDENTITY)
def test_identity_is_exact(embed_dim: int, in_chans: int, spec: StemSpec) -> None:
    weight, bias = filters(embed_dim, in_chans, spec.patch_size)
    images = white_images(in_chans, 3 * spec.patch_size, beyond=0.25)
    stem, report = transplant(spec, weight, bias, dtype=torch.float64)
    assert relative_error(stem, weight, bias, images) < 1e-12
    assert report.exact
    assert {layer.kind for layer in report.layers} == {"identity"}
    assert (report.scope == "every input") == all(layer.split for layer in report.layers)
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


@pytest.mark.parametrize(("embed_dim", "in_chans", "spec"), EMBEDDING)
def test_embedding_with_both_signs_is_exact_for_every_input(embed_dim: int, in_chans: int, spec: StemSpec) -> None:
    weight, bias = filters(embed_dim, in_chans, spec.patch_size)
    shape = 2, in_chans, 2 * spec.patch_size, 3 * spec.patch_size
    noise = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    stem, report = transplant(spec, weight, bias, dtype=torch.float64)
    assert relative_error(stem, weight, bias, noise) < 1e-12
    assert (report.exact, report.scope) == (True, "every input")
    assert "embedding" in {layer.kind for layer in report.layers}
    stem, _ = transplant(spec, weight, bias)
    assert relative_error(stem, weight, bias, noise) < 2e-6
    nn.init.normal_(next(stem[-2].parameters()))  # negative control
    assert relative_error(stem, weight, bias, noise) > 0.1


def test_the_last_convolution_is_plus_and_minus_identity() -> None:
    weight, bias = filters(48, 3, 16)
    stem, _ = transplant(StemSpec((24, 96, 384, 96)), weight, bias)
    identity = torch.eye(48)
    torch.testing.assert_close(stem[4].conv.weight[:, :, 0, 0], torch.cat([identity, -identity], 1))
    torch.testing.assert_close(stem[4].conv.bias, bias.float())


@pytest.mark.parametrize(
    ("widths", "factor"), [((24, 96, 384, 1536), 1.01), ((24, 96, 384, 384), 1.5), ((24, 48, 192, 768), 5)]
)
def test_bfloat16_costs_what_it_costs_the_patch_embedding(widths: tuple[int, ...], factor: float) -> None:
    """Pixels with both signs cost nothing, the embedding one more rounding of the output, shifts several bits."""
    weight, bias = filters(192, 3, 16)
    images = smooth_images(3, 64)
    plain = nn.Sequential(nn.Sequential())
    plain[0].add_module("conv", nn.Conv2d(3, 192, 16, 16))
    plain[0].conv.load_state_dict({"weight": weight, "bias": bias})
    stem, _ = transplant(StemSpec(widths), weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        source = relative_error(plain, weight, bias, images)
        assert 1e-3 < source < relative_error(stem, weight, bias, images) * 1.01
        assert relative_error(stem, weight, bias, images) < factor * source


@pytest.mark.parametrize(
    ("patch", "embed_dim", "in_chans"),
    [
        *((16, 192, 3), (8, 384, 3), (16, 192, 1)),
        *mostly_in_ci([(16, 768, 3), (16, 1024, 3), (8, 768, 3), (16, 192, 4), (8, 384, 13)], []),
    ],
)
def test_default_stems_are_exact_for_every_input(patch: int, embed_dim: int, in_chans: int) -> None:
    weight, bias = filters(embed_dim, in_chans, patch)
    shape = 2, in_chans, 2 * patch, 2 * patch
    noise = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    spec = default_stem(patch, embed_dim, in_chans)
    stem, report = transplant(spec, weight, bias)
    assert (report.exact, report.scope) == (True, "every input")
    assert relative_error(stem, weight, bias, noise) < 2e-6
    once = StemSpec(tuple(in_chans * 4 ** (k + 1) for k in range(len(spec.channels))))  # negative control: shifted
    assert relative_error(transplant(once, weight, bias)[0], weight, bias, noise) > 1e-2


@pytest.mark.parametrize(("embed_dim", "in_chans", "spec"), [*IDENTITY, *LOSSLESS, *EMBEDDING])
def test_the_scope_is_known_without_a_transplant(embed_dim: int, in_chans: int, spec: StemSpec) -> None:
    _, report = transplant(spec, *filters(embed_dim, in_chans, spec.patch_size))
    assert scope(spec, embed_dim, in_chans) == report.scope


@pytest.mark.full
def test_the_default_stem_at_patch_32_is_exact_for_pixels_in_range() -> None:
    weight, bias = filters(384, 3, 32)
    stem, report = transplant(default_stem(32, 384), weight, bias)
    assert (report.exact, report.scope) == (True, "pixels in range")
    assert relative_error(stem, weight, bias, white_images(3, 64, beyond=0.25)) < 5e-6
    assert relative_error(stem, weight, bias, 3 * white_images(3, 64)) > 1e-2


def test_split_stem_holds_beyond_the_pixel_range() -> None:
    weight, bias = filters(30, 3, 4)
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
    reports = [transplant(StemSpec((12, 48, width)), weight, bias, shift="data")[1] for width in (39, 40, 384)]
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


def test_pivots_span() -> None:
    matrix = torch.randn(30, 10, generator=torch.Generator().manual_seed(0)).double()
    matrix[5:15] = matrix[:1]  # of which at most one is worth taking
    rows = pivots(matrix)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 10
    assert torch.linalg.cond(matrix[rows]) < 100


@pytest.mark.parametrize(("dtype", "shift"), [(torch.float32, "box"), (torch.bfloat16, "data")])
def test_auto_shift_follows_the_dtype(dtype: torch.dtype, shift: str) -> None:
    weight, bias = filters(16, 3, 8)
    spec = StemSpec((12, 48, 16))
    automatic, chosen = (transplant(spec, weight, bias, dtype=dtype, shift=s) for s in ("auto", shift))
    errors = [report.predicted_relative_error for _, report in (automatic, chosen)]
    assert max(errors) < 1e-14  # the last digits of a float64 computation differ from run to run
    assert replace(automatic[1], predicted_relative_error=0) == replace(chosen[1], predicted_relative_error=0)
    assert automatic[0][2].bn.bias.dtype == dtype


def test_missing_bias_is_zero() -> None:
    weight, bias = filters(8, 3, 4)
    stem, _ = transplant(StemSpec((12, 48)), weight, None)
    assert relative_error(stem, weight, None, white_images(3, 16)) < 2e-6
    zero, _ = transplant(StemSpec((12, 48)), weight, torch.zeros_like(bias))
    assert torch.equal(stem.get_parameter("2.conv.bias"), zero.get_parameter("2.conv.bias"))


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


def test_batch_norm_epsilon() -> None:
    weight, bias = filters(8, 3, 4)
    stem, _ = transplant(StemSpec((12, 48)), weight, bias, bn_eps=0.1, dtype=torch.float64)
    assert relative_error(stem, weight, bias, white_images(3, 16)) < 1e-12
