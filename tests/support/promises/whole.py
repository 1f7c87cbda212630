"""Whole models, loaded as saved or with changed arguments, and damaged files of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from timm.models import adapt_input_conv

from convstem.errors import ConvStemError
from convstem.features import FeaturePyramid
from tests.support.assertions import relative_error
from tests.support.promises.cell import HALF, STEM, Cell, assert_same, images, situation
from tests.support.promises.files import File
from tests.support.promises.matrix import AFTER, DAMAGES, SIZE


@situation("as saved")
def as_saved(cell: Cell) -> None:
    file = cell.file()
    assert_same(cell, file, cell.open(file), file.model)


def resized(model: Any, size: int) -> Any:
    """Return a copy at another image size, made with timm's own method."""
    model = copy.deepcopy(model)
    model.set_input_size(img_size=(size, size))
    return model


@situation("image size")
def image_size(cell: Cell) -> None:
    file = cell.file()
    if cell.door in AFTER and "pos_embed" in file.state:
        cell.refuses_file(file, "pos_embed", img_size=HALF)
        return
    assert_same(cell, file, cell.open(file, img_size=HALF), resized(file.model, HALF), HALF, img_size=HALF)


@situation("image shape")
def image_shape(cell: Cell) -> None:
    """From 2 x 8 patches to 4 x 4: equally many, but in other places."""
    file = cell.file(img_size=(HALF, 2 * SIZE))
    expected = resized(file.model, SIZE)
    if "pos_embed" in file.state:
        assert expected.pos_embed.shape == file.state["pos_embed"].shape
        assert not torch.allclose(expected.pos_embed, file.state["pos_embed"], atol=1e-2)  # control
    assert_same(cell, file, cell.open(file, img_size=SIZE), expected, img_size=SIZE)


@situation("classes")
def classes(cell: Cell) -> None:
    file = cell.file()
    if cell.door in AFTER:
        cell.refuses_file(file, "head.weight", num_classes=5)
        return
    state, fresh = cell.open(file, num_classes=5).state_dict(), cell.shelf.fresh(file).state_dict()
    assert not torch.equal(fresh[cell.first_conv], file.state[cell.first_conv])  # control
    assert state.keys() == file.state.keys() | {"head.weight", "head.bias"}
    assert [key for key in state if not key.startswith("head.") and not torch.equal(state[key], file.state[key])] == []
    assert (len(state["head.weight"]), len(state["head.bias"])) == (5, 5)
    assert 0 < float(state["head.weight"].std()) < 0.1


@situation("1 channel", 3, 1)
@situation("5 channels", 3, 5)
@situation("5 bands to 10", 5, 10)
@situation("5 bands to 3", 5, 3)
def channels(cell: Cell, saved: int, asked: int) -> None:
    """The first convolution is timm's adaptation of the saved one, all else is unchanged; nothing is random."""
    file = cell.file(in_chans=saved)
    if cell.door in AFTER:
        cell.refuses_file(file, re.escape(cell.first_conv), in_chans=asked)
        return
    model = cell.open(file, in_chans=asked)
    adapted = adapt_input_conv(asked, file.state[cell.first_conv], base_chans=saved)
    expected, state = {**file.state, cell.first_conv: adapted}, model.state_dict()
    assert {key: tensor.shape for key, tensor in state.items()} == {key: t.shape for key, t in expected.items()}
    assert [key for key in state if not torch.equal(state[key], expected[key])] == []
    assert model.in_chans == asked
    with torch.no_grad():
        assert model(images(asked)).isfinite().all()


FIRST_BLOCK = {"features_only": True, "out_indices": (0,)}


@situation("features")
@torch.no_grad()
def features(cell: Cell) -> None:
    file, x = cell.file(), images()
    [expected] = file.model.forward_intermediates(x, indices=[0], intermediates_only=True)
    assert relative_error(cell.shelf.fresh(file, **FIRST_BLOCK)(x)[0], expected) > 1e-2  # negative control
    [actual] = cell.open(file, **FIRST_BLOCK)(x)
    assert torch.equal(actual, expected)


@situation("feature pyramid")
@torch.no_grad()
def feature_pyramid(cell: Cell) -> None:
    """A name with ``_pyramid`` needs no ``feature_cls``."""
    file, x = cell.file(), images()
    asked = {"features_only": True, **({} if cell.kind_name == "_pyramid" else {"feature_cls": "pyramid"})}
    expected = FeaturePyramid(copy.deepcopy(file.model))(x)
    assert [tuple(level.shape[2:]) for level in expected] == [(side, side) for side in (32, 16, 8, 4, 2)]
    assert relative_error(cell.shelf.fresh(file, **asked)(x)[3], expected[3]) > 1e-2  # negative control
    assert all(torch.equal(*levels) for levels in zip(cell.open(file, **asked)(x), expected, strict=True))


@situation("patch size of a file")
def patch_size_of_a_file(cell: Cell) -> None:
    """A stem's strides fix its patch size, so a size other than the file's is an error."""
    after = cell.door in AFTER
    cell.refuses(
        cell.file(), RuntimeError if after else ConvStemError, "stem|backbone" if after else "patch", patch_size=8
    )


# ---- damaged files ---------------------------------------------------------------------------------------------------

WEIGHT = "blocks.0.attn.proj.weight"

DAMAGED: dict[str, tuple[str, Callable[[File], dict[str, Any]]]] = {
    "missing": (WEIGHT, lambda file: {WEIGHT: None}),
    "missing in the stem": (f"{STEM}1.conv.weight", lambda file: {f"{STEM}1.conv.weight": None}),
    "misshapen": ("blocks.0.norm1.weight", lambda file: {"blocks.0.norm1.weight": torch.ones(5)}),
    "surplus": ("blocks.1.norm1.weight", lambda file: {"blocks.1.norm1.weight": torch.ones(5)}),
    "no stem": (f"{STEM}0.conv", lambda file: {key: None for key in file.state if key.startswith("patch_embed.")}),
    "stray proj": ("patch_embed.proj.weight", lambda file: {
        "patch_embed.proj.weight": torch.randn(file.model.embed_dim, 3, 16, 16),
        "patch_embed.proj.bias": torch.randn(file.model.embed_dim),
    }),
}  # fmt: skip
"""Damage -> (the tensor that the error names, the change in the file)."""


def damaged(cell: Cell, damage: str, changes: dict[str, Any]) -> None:
    named, change = DAMAGED[damage]
    file = cell.with_tensors(cell.file(), change(cell.file()))
    cell.refuses_file(file, re.escape(named), **changes)


for name in DAMAGES:
    situation(name, name, {})(damaged)
    situation(f"{name}, other classes", name, {"num_classes": 5})(damaged)
    situation(f"{name}, as features", name, FIRST_BLOCK)(damaged)
