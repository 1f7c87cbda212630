"""A stem alone takes only images of its own size, unless told otherwise."""

import pytest
import torch

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemSpec
from convstem.stem.embed import ConvStemEmbed

STEM = StemSpec((8, 16), (2, 2))


def test_a_size_is_strict_unless_it_is_not() -> None:
    strict, loose = (ConvStemEmbed(STEM, 32, embed_dim=24, **given) for given in ({}, {"strict_img_size": False}))
    assert strict(torch.zeros(1, 3, 32, 32)).shape == loose(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 24)
    assert loose(torch.zeros(1, 3, 36, 36)).shape == (1, 81, 24)
    with pytest.raises(AssertionError):
        strict(torch.zeros(1, 3, 36, 36))


def test_a_strict_size_is_a_multiple_of_the_patch() -> None:
    ConvStemEmbed(STEM, 30, embed_dim=24, strict_img_size=False)
    with pytest.raises(ArgumentError):
        ConvStemEmbed(STEM, 30, embed_dim=24)


def test_tokens_are_a_sequence_unless_they_are_not() -> None:
    images = torch.zeros(1, 3, 32, 32)
    assert ConvStemEmbed(STEM, 32, embed_dim=24)(images).shape == (1, 64, 24)
    assert ConvStemEmbed(STEM, 32, embed_dim=24, flatten=False)(images).shape == (1, 24, 8, 8)
