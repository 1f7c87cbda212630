"""The licence that a model card states, and cards that state none."""

import pytest

from convstem.errors import ArgumentError, InvalidFileError
from convstem.registry.licenses import license_of_card


def card(*lines: str) -> str:
    return "\n".join(["---", *lines, "---", "Words."])


@pytest.mark.parametrize(
    ("lines", "license"),
    [
        (["license: mit"], "mit"),
        (["license: other", "license_name: ours-1.0"], "ours-1.0"),
        (["license: other"], "other"),
    ],
)
def test_what_is_stated(lines: list[str], license: str) -> None:
    assert license_of_card(card(*lines)) == license


@pytest.mark.parametrize("lines", [["tags: [a]"], ["license:"], ["license: ''"]])
def test_no_licence_is_an_error(lines: list[str]) -> None:
    with pytest.raises(InvalidFileError, match="FILE names no licence: its metadata needs a line such as"):
        license_of_card(card(*lines), "FILE")


@pytest.mark.parametrize("license", ["none", "unknown", "unlicensed", "two words"])
def test_what_is_no_licence(license: str) -> None:
    with pytest.raises(ArgumentError):
        license_of_card(card(f"license: {license}"))
