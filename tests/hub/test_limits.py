"""The limits of a config, at the last value that is taken and the first that is not."""

from typing import Any

import pytest

from convstem.errors import InvalidFileError
from convstem.hub.limits import LARGEST_LIST, LARGEST_NUMBER, LARGEST_SIZE, check_config_sizes

DEPTH = LARGEST_SIZE["depth"]


@pytest.mark.parametrize(
    ("name", "taken", "refused", "words"),
    [
        ("depth", DEPTH, DEPTH + 1, f"depth = {DEPTH + 1} is absurd; at most {DEPTH:,} is accepted"),
        ("depth", 1, 0, "depth must be positive; got 0"),
        ("num_classes", 0, -1, "num_classes must be positive; got -1"),
        ("stem_channels", [1] * LARGEST_LIST, [1] * (LARGEST_LIST + 1), "stem_channels = .* is absurd"),
        ("something", -LARGEST_NUMBER, -LARGEST_NUMBER - 1, "something = .* is absurd"),
        ("something", 0, LARGEST_NUMBER + 1, "something = .* is absurd"),
    ],
)
def test_numbers(name: str, taken: Any, refused: Any, words: str) -> None:
    check_config_sizes([(name, taken)])
    check_config_sizes([(name, "a word"), (name, None)])
    with pytest.raises(InvalidFileError, match=words):
        check_config_sizes([(name, refused)])
