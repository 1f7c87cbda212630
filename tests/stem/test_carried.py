"""The report of what a stem carries, and the stems that are refused."""

import math
from itertools import product

import pytest

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemSpec
from convstem.stem.carried import EVERY_INPUT, IN_RANGE, carried_by
from convstem.stem.carry import carry
from tests.support.stem_transplants import LOW, filters, transplant


def test_report() -> None:
    _, report = transplant(StemSpec((24, 50, 200)), *filters(100, 3, 8))
    first, second, third = report.layers
    assert (first.carries, first.count, first.used, first.width, first.both_signs) == ("pixels", 12, 24, 24, True)
    assert (second.carries, second.count, second.used, second.width, second.both_signs) == ("pixels", 48, 48, 50, False)
    assert (third.carries, third.count, third.used, third.width, third.both_signs) == ("embedding", 100, 200, 200, True)
    assert report.summary() == (
        "The transplant is exact for pixels in range, up to rounding. In detail, layer 0 carries 12 values of the "
        "pixels with both signs in 24 of 24 channels; layer 1 carries 48 values of the pixels shifted in 48 of 50 "
        "channels; layer 2 carries 100 values of the embedding with both signs in 200 of 200 channels."
    )
    assert carried_by(StemSpec((24, 20)), 10).outcome() == "The transplant is exact for every input, up to rounding."


SMALL = list(product((1, 2, 5, 11), ((2,), (2, 2), (2, 1), (1, 2), (2, 1, 1)), range(7)))


@pytest.mark.parametrize("in_chans", [1, 2])
def test_a_stem_is_refused_where_no_choice_of_what_it_carries_fits(in_chans: int) -> None:
    """Layers carry pixels and, from some layer on, the embedding. All choices are tried."""
    seen = set()
    for embed_dim, strides, pick in SMALL:
        choices = [max(1, in_chans * 4 ** (layer + 1) * share // 4) for layer in range(3) for share in (1, 3, 4, 8)]
        for channels in product(choices[pick:], repeat=len(strides)):
            spec = StemSpec(channels, strides)
            sides = [math.prod(strides[: layer + 1]) for layer in range(len(strides))]
            pixels = [in_chans * side**2 for side in sides]
            shares = [embed_dim * (spec.patch_size // side) ** 2 for side in sides]
            possible: set[bool] = set()  # whether each choice is exact for every input
            for turn in range(len(strides) + 1):
                signed = [w >= 2 * v for w, v in zip(channels, [*pixels[:turn], *shares[turn:]], strict=True)]
                once = [w >= v for w, v in zip(channels, pixels[:turn], strict=False)]
                if all(signed[turn:]) and all(once):
                    possible.add(all(signed))
            seen.add(max(possible, default=None))
            if possible:
                assert (carried_by(spec, embed_dim, in_chans).scope == EVERY_INPUT) == max(possible)
            else:
                with pytest.raises(ArgumentError, match="too narrow"):
                    carried_by(spec, embed_dim, in_chans)
    assert seen == {None, False, True}


@pytest.mark.parametrize(
    ("embed_dim", "spec", "always", "in_range"),
    [
        (192, StemSpec((24, 48, 96, 192)), (24, 96, 384, 384), (12, 48, 192, 384)),  # the paper's 1GF
        (768, StemSpec((64, 128, 128, 256, 256, 512), (2, 2, 1, 2, 1, 2)), (24, 96, 96, 384, 384, 1536),
         (12, 48, 48, 192, 192, 768)),
        (10, StemSpec((24, 40, 20)), (24, 80, 20), (12, 48, 20)),
        (20, StemSpec((12, 48, 38), (2, 2, 1)), (24, 40, 40), (12, 40, 40)),
        (384, StemSpec((12, 500), (2, 7), (3, 13)), (24, 768), (12, 588)),
    ],
)  # fmt: skip
def test_a_narrow_stem_is_refused_with_the_channels_that_would_do(
    embed_dim: int, spec: StemSpec, always: tuple[int, ...], in_range: tuple[int, ...]
) -> None:
    weight, bias = filters(embed_dim, 3, spec.patch_size)
    with pytest.raises(ArgumentError, match=r"is too narrow for this patch embedding: layer \d has") as caught:
        carry(weight, bias, spec, [LOW] * 3)
    assert f"With these strides, {list(always)} and wider stems are exact for every input" in str(caught.value)
    assert f"{list(in_range)} for pixels in range" in str(caught.value)
    for channels, scope in ((always, EVERY_INPUT), (in_range, IN_RANGE)):
        enough = StemSpec(channels, spec.strides, spec.kernel_sizes)
        assert carried_by(enough, embed_dim).scope == scope
        for layer in range(len(channels)):
            less = StemSpec(tuple(width - (index == layer) for index, width in enumerate(channels)), spec.strides,
                            spec.kernel_sizes)  # fmt: skip
            if scope == EVERY_INPUT:
                with pytest.raises(ArgumentError, match="range .*is unknown|too narrow"):
                    carry(weight, bias, less)
            else:
                with pytest.raises(ArgumentError, match="too narrow"):
                    carried_by(less, embed_dim)
