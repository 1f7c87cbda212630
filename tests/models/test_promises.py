"""The matrix of promises: every kind of name, at every door, in every situation, keeps the same ones."""

import copy
import json
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from convstem.errors import ArgumentError, ArgumentTypeError, CheckpointError, ConvStemError
from convstem.features.pyramid import FeaturePyramid
from convstem.transplanting.patch_size import enlarge_patches
from tests.support.assertions import relative_error
from tests.support.hub_server.client import run_python
from tests.support.jax_checkpoints import npz
from tests.support.promises import AFTER, DAMAGES, DOORS, KINDS, LISTED, SIZE, File, Kind, Shelf, listed

HALF = SIZE // 2
STEM = "patch_embed.backbone."


@dataclass
class Cell:
    """A kind of name at a door."""

    kind_name: str
    door: str
    shelf: Shelf

    @property
    def kind(self) -> Kind:
        return KINDS[self.kind_name]

    @property
    def first_conv(self) -> str:
        return f"{STEM}0.conv.weight" if self.kind.ours else "patch_embed.proj.weight"

    def file(self, **arguments: Any) -> File:
        return self.shelf.file(self.kind, self.door, **arguments)

    def patchify(self) -> File:
        return self.shelf.patchify(self.kind, self.door)

    def open(self, file: File, **changes: Any) -> Any:
        return DOORS[self.door](file, **changes).eval()

    def fresh(self, file: File, **changes: Any) -> Any:
        key = ("fresh", file.name, *sorted({**file.arguments, **changes}.items()))
        return self.shelf.once(key, lambda: DOORS["fresh"](file, **changes).eval())

    def with_tensors(self, file: File, changes: dict[str, Any]) -> File:
        """Return a file with other tensors; None takes one away."""
        state = {key: tensor for key, tensor in {**file.state, **changes}.items() if tensor is not None}
        return file.but(self.shelf.folder(), state)

    def refuses(self, file: File, error: type[Exception], message: str, **changes: Any) -> str:
        """Check that opening a file is one error, which says this; return what it says."""
        with warnings.catch_warnings(), pytest.raises(error, match=f"(?s){message}") as caught:
            warnings.simplefilter("ignore")
            self.open(file, **changes)
        return str(caught.value)

    def refuses_file(self, file: File, message: str, **changes: Any) -> None:
        """Check that a file is refused; where it comes after the model was built, torch compares."""
        self.refuses(file, RuntimeError if self.door in AFTER else CheckpointError, message, **changes)


CELLS: dict[str, Callable[[Cell], None]] = {}
"""Situation -> what has to hold in it."""


def situation(name: str, *arguments: Any) -> Callable[[Any], Any]:
    """Enter a function, with its further arguments, into the table of situations."""

    def enter(check: Callable[..., None]) -> Callable[..., None]:
        CELLS[name] = partial(_call, check, arguments)
        return check

    return enter


def _call(check: Callable[..., None], arguments: tuple[Any, ...], cell: Cell) -> None:
    check(cell, *arguments)


def images(channels: int = 3, size: int = SIZE) -> Tensor:
    return torch.randn(2, channels, size, size)


# ---- whole models, saved and asked for otherwise ---------------------------------------------------------------------


@torch.no_grad()
def assert_same(cell: Cell, file: File, actual: Any, expected: Any, size: int = SIZE, **changes: Any) -> None:
    x = images(size=size)
    assert relative_error(cell.fresh(file, **changes)(x), expected(x)) > 1e-2  # negative control
    assert torch.equal(actual(x), expected(x))


@situation("as saved")
def as_saved(cell: Cell) -> None:
    file = cell.file()
    assert_same(cell, file, cell.open(file), file.model)


def resized(model: Any, size: int) -> Any:
    """Return a copy at another image size, by timm's own method."""
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
    """From 2 x 8 patches to 4 x 4: as many, elsewhere."""
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
    state = cell.open(file, num_classes=5).state_dict()
    assert not torch.equal(cell.fresh(file).state_dict()[cell.first_conv], file.state[cell.first_conv])  # control
    assert state.keys() == file.state.keys() | {"head.weight", "head.bias"}
    assert all(torch.equal(state[key], file.state[key]) for key in state if not key.startswith("head."))
    assert (len(state["head.weight"]), len(state["head.bias"])) == (5, 5)
    assert 0 < float(state["head.weight"].std()) < 0.1


@situation("1 channel", 3, 1)
@situation("13 channels", 3, 13)
@situation("13 bands to 26", 13, 26)
@situation("13 bands to 3", 13, 3)
def channels(cell: Cell, saved: int, asked: int) -> None:
    """The first convolution is timm's adaption of the saved one, all else as it was; nothing is random."""
    file = cell.file(in_chans=saved)
    if cell.door in AFTER:
        cell.refuses_file(file, re.escape(cell.first_conv), in_chans=asked)
        return
    model = cell.open(file, in_chans=asked)
    weight = file.state[cell.first_conv]
    expected = {**file.state, cell.first_conv: adapt_input_conv(asked, weight, base_chans=saved)}
    state = model.state_dict()
    assert {key: tensor.shape for key, tensor in state.items()} == {key: t.shape for key, t in expected.items()}
    assert [key for key in state if not torch.equal(state[key], expected[key])] == []
    assert model.in_chans == asked
    with torch.no_grad():
        assert model(images(asked)).isfinite().all()


@situation("features")
@torch.no_grad()
def features(cell: Cell) -> None:
    file, x, wanted = cell.file(), images(), {"features_only": True, "out_indices": (0,)}
    [expected] = file.model.forward_intermediates(x, indices=[0], intermediates_only=True)
    assert relative_error(cell.fresh(file, **wanted)(x)[0], expected) > 1e-2  # negative control
    [actual] = cell.open(file, **wanted)(x)
    assert torch.equal(actual, expected)


@situation("feature pyramid")
@torch.no_grad()
def feature_pyramid(cell: Cell) -> None:
    """Of a name with ``_pyramid`` without being asked for."""
    file, x = cell.file(), images()
    wanted = {"features_only": True, **({} if cell.kind_name == "pyramid" else {"feature_cls": "pyramid"})}
    fresh, actual, expected = (m(x) for m in (cell.fresh(file, **wanted), cell.open(file, **wanted),
                                              FeaturePyramid(copy.deepcopy(file.model))))  # fmt: skip
    assert [tuple(level.shape[2:]) for level in expected] == [(s, s) for s in (32, 16, 8, 4, 2)]
    assert relative_error(fresh[3], expected[3]) > 1e-2  # negative control
    assert all(torch.equal(*levels) for levels in zip(actual, expected, strict=True))


@situation("patch size of a file")
def patch_size_of_a_file(cell: Cell) -> None:
    message = "stem|backbone" if cell.door in AFTER else "patch"
    cell.refuses(cell.file(), RuntimeError if cell.door in AFTER else ConvStemError, message, patch_size=8)


# ---- damaged files ---------------------------------------------------------------------------------------------------

DAMAGED: dict[str, tuple[str, Callable[[File], dict[str, Any]]]] = {
    "missing": ("blocks.0.attn.proj.weight", lambda file: {"blocks.0.attn.proj.weight": None}),
    "missing in the stem": (f"{STEM}1.conv.weight", lambda file: {f"{STEM}1.conv.weight": None}),
    "misshapen": ("blocks.0.norm1.weight", lambda file: {"blocks.0.norm1.weight": torch.ones(5)}),
    "surplus": ("blocks.1.norm1.weight", lambda file: {"blocks.1.norm1.weight": torch.ones(5)}),
    "no stem": (f"{STEM}0.conv", lambda file: {key: None for key in file.state if key.startswith("patch_embed.")}),
    "stray proj": (
        "patch_embed.proj.weight",
        lambda file: {"patch_embed.proj.weight": torch.randn(file.model.embed_dim, 3, 16, 16),
                      "patch_embed.proj.bias": torch.randn(file.model.embed_dim)},
    ),
}  # fmt: skip
assert (*DAMAGED,) == DAMAGES

FEATURES = {"features_only": True, "out_indices": (0,)}


def damaged(cell: Cell, damage: str, changes: dict[str, Any]) -> None:
    named, change = DAMAGED[damage]
    file = cell.with_tensors(cell.file(), change(cell.file()))
    cell.refuses_file(file, re.escape(named), **changes)


for damage in DAMAGED:
    situation(damage, damage, {})(damaged)
    situation(f"{damage}, other classes", damage, {"num_classes": 5})(damaged)
    situation(f"{damage}, as features", damage, FEATURES)(damaged)


# ---- files of a plain ViT --------------------------------------------------------------------------------------------


def told(cell: Cell) -> AbstractContextManager[Any]:
    """Expect the warning of a state dict that is carried into the stem of a model that is there already."""
    carried = cell.kind.ours and cell.door in AFTER
    return pytest.warns(UserWarning, match="patch embedding|patchify") if carried else nullcontext()


@torch.no_grad()
def assert_carried(cell: Cell, model: Any, fresh: Any, plain: Any, within: float = 2e-5, head: bool = True) -> None:
    """Check that a model computes what the plain ViT does."""
    dtype = next(plain.parameters()).dtype
    size = plain.patch_embed.img_size
    x = torch.randn(2, plain.patch_embed.proj.in_channels, *size, dtype=dtype)
    ours = enlarge_patches(x, 14) if plain.patch_embed.patch_size == (14, 14) else x
    out = (lambda m, x: m(x)) if head else (lambda m, x: m.forward_head(m.forward_features(x), pre_logits=True))
    expected = out(plain, x)
    assert relative_error(out(fresh.to(dtype), ours), expected) > 1e-2  # negative control
    assert relative_error(out(model, ours), expected) < within


@situation("patchify", torch.float32, 2e-5)
@situation("patchify in float64", torch.float64, 1e-9)
def patchify(cell: Cell, dtype: torch.dtype, within: float) -> None:
    file, plain = cell.patchify(), copy.deepcopy(cell.shelf.plain(cell.kind)).to(dtype)
    with told(cell):
        model = cell.open(file, dtype=dtype)
    assert_carried(cell, model, copy.deepcopy(cell.fresh(file)), plain, within)


@situation("patchify, strict=False")
def patchify_lenient(cell: Cell) -> None:
    file = cell.patchify()
    model = copy.deepcopy(cell.fresh(file))
    with told(cell):
        model.load_state_dict(file.state, strict=False)
    assert_carried(cell, model, cell.fresh(file), cell.shelf.plain(cell.kind))


REFUSED_AFTER = {"img_size": "pos_embed", "num_classes": "head.weight", "in_chans": "channels|patch_embed",
                 "patch_size": "patch"}  # fmt: skip
"""What torch's comparison names where the weights come after the model was built for something else."""


@situation("patchify, image size", {"img_size": HALF})
@situation("patchify, classes", {"num_classes": 5})
@situation("patchify, 1 channel", {"in_chans": 1})
@situation("patchify, 13 channels", {"in_chans": 13})
@situation("patchify, patch size", {"patch_size": 8})
def patchify_otherwise(cell: Cell, changes: dict[str, Any]) -> None:
    """As timm itself reads the file into a plain ViT that is asked for otherwise."""
    file, [(name, _)] = cell.patchify(), changes.items()
    if cell.door in AFTER and not (name == "img_size" and "pos_embed" not in file.state):
        cell.refuses_file(file, REFUSED_AFTER[name], **changes)
        return
    plain = cell.shelf.reading(cell.kind, **changes)
    with told(cell):
        model = cell.open(file, **changes)
    assert_carried(cell, model, cell.fresh(file, **changes), plain, head=name != "num_classes")
    assert model.num_classes == plain.num_classes


@situation("patchify, missing", {})
@situation("patchify, missing, other classes", {"num_classes": 5})
def patchify_missing(cell: Cell, changes: dict[str, Any]) -> None:
    file = cell.with_tensors(cell.patchify(), {"blocks.0.attn.proj.weight": None})
    cell.refuses_file(file, re.escape("blocks.0.attn.proj.weight"), **changes)


# ---- files that timm's own filter reads ------------------------------------------------------------------------------


def mae(state: dict[str, Tensor]) -> dict[str, Any]:
    decoder = {"decoder_embed.weight": torch.ones(8, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    return {
        "model": {**state, "mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.ones(1, 17, 8), **decoder}
    }


WRAPPED: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "OpenCLIP": lambda state: {f"visual.trunk.{key}": tensor for key, tensor in state.items()},
    "DINOv2": lambda state: {**state, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])},
    "I-JEPA": lambda state: {"encoder": {f"module.{key}": tensor for key, tensor in state.items()}},
    "MAE with decoder": mae,
}


def foreign(cell: Cell, whose: str) -> None:
    source = cell.shelf.plain(cell.kind, num_classes=0)
    path = cell.shelf.folder().with_suffix(".pth")
    torch.save(WRAPPED[whose](source.state_dict()), path)
    assert_read(cell, path, {}, source)


for whose in WRAPPED:
    situation(whose, whose)(foreign)


@situation("JAX .npz")
def jax(cell: Cell) -> None:
    source = cell.shelf.plain(cell.kind, num_classes=0)
    path = cell.shelf.folder().with_suffix(".npz")
    numpy.savez(path, **npz(source.state_dict(), source.blocks[0].attn.num_heads, big_vision=False))
    assert_read(cell, path, {"custom_load": True}, source)


def assert_read(cell: Cell, path: Path, facts: dict[str, Any], source: Any) -> None:
    """Check that a file is read as timm reads it into the plain ViT."""
    ours = replace(cell.file(num_classes=0), given=path, facts=facts)
    theirs = replace(ours, name=cell.kind.plain, arguments=cell.kind.plain_arguments({"num_classes": 0}))
    assert_carried(cell, cell.open(theirs), cell.fresh(theirs), source, within=1e-6)  # control
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is carried
        model = cell.open(ours)
    assert_carried(cell, model, cell.fresh(ours), source)


# ---- mistakes of the caller ------------------------------------------------------------------------------------------


def mistake(cell: Cell, error: type[Exception] | tuple[type[Exception], ...], message: str, **changes: Any) -> None:
    """Check that an error is about the caller's argument, and blames no file and no function of anybody's."""
    said = cell.refuses(cell.file(), error, message, **changes)
    assert not re.search(r"config\.json|\w\(\)", said), said


for name, (error, message, changes) in {
    "misspelt argument": (ArgumentTypeError, "drop_pat_rate.*drop_path_rate", {"drop_pat_rate": 0.1}),
    "image size 100": (ArgumentError, "img_size.*16.*100.*96.*112", {"img_size": 100}),
    "out_indices 99": ((ConvStemError, AssertionError), "99.*0", {"features_only": True, "out_indices": (99,)}),
    "patch size 14": (ArgumentError, "(?=.*14)(?=.*16).*powers? of two", {"patch_size": 14, "img_size": 56}),
}.items():
    situation(name, error, message, changes)(lambda cell, *told: mistake(cell, *told[:2], **told[2]))


# ---- models without weights ------------------------------------------------------------------------------------------


@situation("patch size 8")
def patch_size_8(cell: Cell) -> None:
    model = timm.create_model(cell.kind.name, depth=1, img_size=SIZE, patch_size=8).eval()
    assert (model.patch_embed.patch_size, model.patch_embed.grid_size) == ((8, 8), (8, 8))
    with torch.no_grad():
        assert model(images()).isfinite().all()
        assert model.patch_embed(images()).flatten(1, -2).shape == (2, 64, model.embed_dim)


@situation("proj read")
def proj_read(cell: Cell) -> None:
    """As libraries read it that know patch embeddings only, without an adapter finding a layer there."""
    model = cell.open(cell.file(in_chans=4))
    proj, width = model.patch_embed.proj, model.embed_dim
    assert tuple(proj.weight.shape) == (width, 4, 16, 16)
    assert (proj.in_channels, proj.out_channels) == (4, width)
    assert (tuple(proj.kernel_size), tuple(proj.stride)) == ((16, 16), (16, 16))
    nn.init.xavier_uniform_(proj.weight.data.flatten(1))  # as lightly does
    names = [*dict(model.named_modules()), *dict(model.named_parameters()), *model.state_dict()]
    assert [name for name in names if "patch_embed.proj" in name] == []
    assert f"{STEM}0.conv.weight" in names  # control


@situation("proj assigned")
@torch.no_grad()
def proj_assigned(cell: Cell) -> None:
    model = copy.deepcopy(cell.open(cell.file()))
    x, before = images(), model.state_dict().keys()
    expected = model(x)
    with pytest.raises(ConvStemError, match=r"(?s)(?=.*in_chans=).*transplant\(.*bands"):
        model.patch_embed.proj = nn.Conv2d(4, model.embed_dim, 16, 16)
    assert model.state_dict().keys() == before
    assert torch.equal(model(x), expected)


@situation("timm's filter")
def timms_filter(cell: Cell) -> None:
    """``load_checkpoint(filter_fn=checkpoint_filter_fn)``, with the filter of the plain ViT's class."""
    plain, model = cell.shelf.plain(cell.kind), cell.open(cell.file())
    filtered = sys.modules[type(plain).__module__].checkpoint_filter_fn(plain.state_dict(), model)
    with pytest.warns(UserWarning, match="patch embedding|patchify"):
        model.load_state_dict(filtered)
    assert_carried(cell, model, cell.fresh(cell.file()), plain)


NAFLEX = """
import json, timm
def found(name):
    try:
        return type(timm.create_model(name, depth=1)).__name__
    except Exception as error:
        return str(error)
print(json.dumps({name: found(name) for name in %r}))
"""


@cache
def classes_with_naflex() -> dict[str, str]:
    """Return the class of every name where timm is told to build NaFlex models instead."""
    result = run_python(NAFLEX % [kind.name for kind in KINDS.values()], TIMM_USE_NAFLEXVIT="true", HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


@situation("TIMM_USE_NAFLEXVIT")
def naflex(cell: Cell) -> None:
    found = classes_with_naflex()
    assert found[KINDS["plain"].name] == "NaFlexVit"  # control
    assert found[cell.kind.name] == ("NaFlexVit" if not cell.kind.ours else type(cell.fresh(cell.file())).__name__)


# ---- the matrix ------------------------------------------------------------------------------------------------------

ALL = [(kind, door, name) for kind in KINDS for door in DOORS for name in CELLS]
CHECKED = [cell for cell in ALL if listed(*cell) is None]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("promises"))


@pytest.mark.parametrize(("kind", "door", "name"), CHECKED, ids=map(" - ".join, CHECKED))
def test_promise(kind: str, door: str, name: str, shelf: Shelf) -> None:
    CELLS[name](Cell(kind, door, shelf))


def test_every_cell_is_checked_or_listed_and_no_reason_is_idle() -> None:
    reasons = {listed(*cell) for cell in ALL}
    assert reasons - {None} == {reason for *_, reason in LISTED}
    assert {kind for kind, _, _ in CHECKED} == set(KINDS)
    assert {door for _, door, _ in CHECKED} == set(DOORS)
    assert {name for _, _, name in CHECKED} == set(CELLS)
