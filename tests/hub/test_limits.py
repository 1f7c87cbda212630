"""The limits of a config, at the last accepted value and the first refused one."""

from typing import Any, Literal

import pytest

from convstem.errors import InvalidFileError
from convstem.files.safetensors import Stored
from convstem.hub.config import check_stated
from convstem.hub.limits import (
    LARGEST_LIST,
    LARGEST_NUMBER,
    LARGEST_PATCH,
    LARGEST_SIZE,
    _check_pixels,
    check_config_sizes,
    check_fits_header,
    fits,
    in_words,
)

DEPTH = LARGEST_SIZE["depth"]


@pytest.mark.parametrize(
    ("name", "taken", "refused", "words"),
    [
        ("depth", DEPTH, DEPTH + 1, f"depth = {DEPTH + 1} is too large; at most {DEPTH:,} is accepted"),
        ("depth", 1, 0, "depth must be positive; got 0"),
        ("num_classes", 0, -1, "num_classes must be positive; got -1"),
        ("stem_channels", [1] * LARGEST_LIST, [1] * (LARGEST_LIST + 1), "stem_channels = .* is too large"),
        ("something", -LARGEST_NUMBER, -LARGEST_NUMBER - 1, "something = .* is too large"),
        ("something", 0, LARGEST_NUMBER + 1, "something = .* is too large"),
    ],
)
def test_numbers(name: str, taken: Any, refused: Any, words: str) -> None:
    check_config_sizes([(name, taken)])
    check_config_sizes([(name, "a word"), (name, None)])
    with pytest.raises(InvalidFileError, match=words):
        check_config_sizes([(name, refused)])


def test_what_was_taken_once_stays_taken() -> None:
    """Users' existing configs were written within these limits, so they must not shrink."""
    for name, largest in {
        "depth": 512, "embed_dim": 16384, "img_size": 8192, "in_chans": 4096, "input_size": 8192, "mlp_ratio": 1024,
        "num_classes": 1048576, "num_heads": 1024, "patch_size": 1024, "stride": 1024,
    }.items():  # fmt: skip
        check_config_sizes([(name, largest)])
        with pytest.raises(InvalidFileError, match=rf"{name} = \d+ is too large; at most {largest:,} is"):
            check_config_sizes([(name, largest + 1)])


@pytest.mark.parametrize(
    ("value", "kind", "fitting"),
    [
        ((1, 2, 3), tuple[int, ...], True),
        ((1, "a"), tuple[int, ...], False),
        ((1, 2, 3), tuple[int], True),  # timm means tuple[int, ...]
        ((1, 2), tuple[int, int], True),
        ((1, 2, 3), tuple[int, int], False),
        ((1, 2), list[int], True),
        (True, int, False),
        (float("nan"), float, False),
        ("relu", Literal["relu"], True),
        ("gelu", Literal["relu"], False),
        (None, int | None, True),
    ],
)
def test_kinds(value: Any, kind: Any, fitting: bool) -> None:
    assert fits(value, kind) is fitting


@pytest.mark.parametrize("size", [2 * LARGEST_PATCH, [2 * LARGEST_PATCH] * 2, [3, LARGEST_PATCH, 4 * LARGEST_PATCH]])
def test_images_are_no_larger_than_the_positions_can_cover(size: Any) -> None:
    _check_pixels("img_size", size, {"pos_embed": Stored((1, 4, 8), True)})
    with pytest.raises(InvalidFileError, match="img_size = .* is more than the weights beside it allow"):
        _check_pixels("img_size", size, {"pos_embed": Stored((1, 3, 8), True)})
    _check_pixels("img_size", size, {})


def test_a_config_is_held_to_the_limits() -> None:
    check_stated("vit_nano4_convstem", {"input_size": [3, 32, 32]}, {"depth": DEPTH})
    for cfg, args in (({}, {"depth": DEPTH + 1}), ({"input_size": [3, 1 << 14, 32]}, {})):
        with pytest.raises(InvalidFileError, match=r"at most [\d,]+ is accepted"):
            check_stated("vit_nano4_convstem", cfg, args)


def test_a_config_may_state_what_its_file_holds() -> None:
    header = {f"blocks.{i}.weight": Stored((2000, 8), True) for i in range(3)}
    check_fits_header({"depth": 3, "embed_dim": 2000}, {}, header)
    for sizes in ({"depth": 4}, {"embed_dim": 2001}):
        with pytest.raises(InvalidFileError, match="is more than the weights beside it allow: at most (3|2,000), by"):
            check_fits_header(sizes, {}, header)


def test_heads_must_divide_the_width() -> None:
    check_stated("vit_nano4_convstem", {}, {"embed_dim": 96, "num_heads": 3})
    with pytest.raises(InvalidFileError, match="embed_dim must be a multiple of num_heads; got 97 and 3"):
        check_stated("vit_nano4_convstem", {}, {"embed_dim": 97, "num_heads": 3})


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (tuple[int, ...], "a list of a whole number"),
        (tuple[int, int], "a list of 2 times a whole number"),
        (int | tuple[int, int], "a whole number or a list of 2 times a whole number"),
        (Literal["b", "a"], "one of 'a', 'b'"),
    ],
)
def test_annotations_in_words(kind: Any, words: str) -> None:
    assert in_words(kind) == words
