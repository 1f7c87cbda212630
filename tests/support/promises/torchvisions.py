"""The same promises for torchvision's names, at the doors that they have."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import convstem
from convstem.errors import ArgumentError, ArgumentTypeError, CheckpointError
from tests.support.assertions import randomise, relative_error
from tests.support.promises.cell import HALF, STEM, Cell, situation
from tests.support.promises.files import File, by_load
from tests.support.promises.matrix import DAMAGES, SIZE
from tests.support.promises.whole import DAMAGED, WEIGHT, resized

NAME = "vit_ti_16_convstem"
CELLS: dict[str, Callable[[Cell], None]] = {}
KEYS = {  # of the damaged tensors
    WEIGHT: "encoder.layers.encoder_layer_0.self_attention.out_proj.weight",
    f"{STEM}1.conv.weight": "conv_proj.conv_bn_relu_1.0.weight",
    "blocks.0.norm1.weight": "encoder.layers.encoder_layer_0.ln_1.weight",
    "blocks.1.norm1.weight": "encoder.layers.encoder_layer_1.ln_1.weight",
    f"{STEM}0.conv": "conv_proj.conv_bn_relu_0.0",
    "patch_embed.proj.weight": "conv_proj.weight",
}
"""timm's key -> torchvision's."""


def build(**arguments: Any) -> Any:
    """Return a small model by its name."""
    sized = {} if arguments.get("weights") else {"image_size": SIZE}
    return torchvision.models.get_model(NAME, num_layers=1, **{**sized, **arguments})


def plain(**arguments: Any) -> Any:
    """Return torchvision's plain ViT of the same sizes with its own weights."""
    sizes = dict(image_size=SIZE, patch_size=16, num_layers=1, num_heads=3, hidden_dim=192, mlp_dim=768)
    return randomise(torchvision.models.VisionTransformer(**{**sizes, **arguments})).eval()


def by_weights(file: File, **changes: Any) -> Any:
    file.in_cache(timm.get_pretrained_cfg(file.name).hf_hub_id, Path(os.environ["HF_HUB_CACHE"]))
    return build(weights="DEFAULT", **changes).eval()


def by_layout(file: File, **changes: Any) -> Any:
    return by_load(file, layout="torchvision", **changes)


DOORS = {"tag": by_weights, "load": by_layout}
"""Doors that take a file in timm's layout."""


def file_of(cell: Cell, make: Callable[..., File]) -> File:
    """Return a file for a door; weights= takes only a model at the file's image size."""
    return make(cell.kind, cell.door, **({"img_size": 224} if cell.door == "tag" else {}))


@torch.no_grad()
def assert_equal(model: Any, expected: Any, x: Tensor) -> None:
    fresh = build(image_size=x.shape[-1]).eval()
    assert relative_error(fresh(x), expected(x)) > 1e-2  # negative control
    assert relative_error(model(x), expected(x)) < 2e-5


def images(cell: Cell, size: int = SIZE) -> Tensor:
    side = 224 if cell.door == "tag" else size
    return torch.randn(2, 3, side, side)


@situation("as saved", table=CELLS)
def as_saved(cell: Cell) -> None:
    if cell.door in DOORS:
        file = file_of(cell, cell.shelf.file)
        assert_equal(DOORS[cell.door](file), file.model, images(cell))
        return
    source = plain() if cell.door == "transplant" else randomise(build()).eval()
    saved = convstem.transplant(copy.deepcopy(source)) if cell.door == "transplant" else source
    model = build().eval()
    model.load_state_dict(saved.state_dict())
    assert_equal(model, source, images(cell))


@situation("patchify", table=CELLS)
def patchify(cell: Cell) -> None:
    if cell.door == "transplant":
        as_saved(cell)
    elif cell.door == "load_state_dict":
        carried(cell, strict=True)
    else:
        file = file_of(cell, cell.shelf.patchify)
        source = cell.shelf.plain(cell.kind, img_size=file.arguments["img_size"])
        assert_equal(DOORS[cell.door](file), source, images(cell))


@situation("patchify, strict=False", False, table=CELLS)
def carried(cell: Cell, strict: bool) -> None:
    source, model = randomise(plain()).eval(), build().eval()
    with pytest.warns(UserWarning, match="patch embedding and no conv stem: it was transplanted"):
        model.load_state_dict(source.state_dict(), strict=strict)
    assert_equal(model, source, images(cell))


@situation("patchify in float64", table=CELLS)
@torch.no_grad()
def patchify_in_float64(cell: Cell) -> None:
    file = file_of(cell, cell.shelf.patchify)
    x, source = images(cell).double(), copy.deepcopy(cell.shelf.plain(cell.kind)).double()
    assert relative_error(by_layout(file, dtype=torch.float64)(x), source(x)) < 1e-9
    assert relative_error(build().double().eval()(x), source(x)) > 1e-2  # negative control


ASKED = {"image size": {"img_size": HALF}, "classes": {"num_classes": 5}}
"""Change -> timm's arguments."""

FIXED = {"image size": ({"image_size": HALF}, "image_size is 224", "pos_embedding"),
         "classes": ({"num_classes": 5}, "num_classes is 1000", "heads.head.weight")}  # fmt: skip
"""Change -> (torchvision's arguments, text of the error of weights=, of load_state_dict)."""


@situation("image size", "image size", table=CELLS)
@situation("classes", "classes", table=CELLS)
def otherwise(cell: Cell, what: str) -> None:
    changes, stated, named = FIXED[what]
    if cell.door == "tag":
        with pytest.raises(ArgumentError, match=stated):
            by_weights(file_of(cell, cell.shelf.file), **changes)
    elif cell.door == "load_state_dict":
        with pytest.raises(RuntimeError, match=re.escape(named)):
            build(**changes).load_state_dict(build().state_dict())
    else:
        file = cell.file()
        assert_otherwise(by_layout(file, **ASKED[what]), file.model, what, images(cell, HALF))


@situation("patchify, image size", "image size", table=CELLS)
@situation("patchify, classes", "classes", table=CELLS)
def patchify_otherwise(cell: Cell, what: str) -> None:
    assert_otherwise(by_layout(cell.patchify(), **ASKED[what]), cell.shelf.plain(cell.kind), what, images(cell, HALF))


def assert_otherwise(model: Any, source: Any, what: str, x: Tensor) -> None:
    """Check a model loaded at another image size or with another head."""
    if what == "image size":
        assert_equal(model, resized(source, HALF), x)
        return
    assert model.heads.head.out_features == 5
    assert 0 < float(model.heads.head.weight.detach().std()) < 0.1
    headless = copy.deepcopy(source)
    headless.head = nn.Identity()
    model.heads = nn.Identity()
    with torch.no_grad():
        x = torch.randn(2, 3, SIZE, SIZE)
        assert relative_error(model(x), headless(x)) < 2e-5


def damaged(cell: Cell, damage: str, changes: dict[str, Any]) -> None:
    named, change = DAMAGED[damage]
    if cell.door == "load_state_dict":
        state, model = build().state_dict(), build(**changes)
        changed = {renamed(key): tensor for key, tensor in change(cell.file()).items()}
        assert all(key in state for key, tensor in changed.items() if tensor is None)
        state = {key: tensor for key, tensor in {**state, **changed}.items() if tensor is not None}
        with pytest.raises(RuntimeError, match=re.escape(KEYS[named])):
            model.load_state_dict(state)
        return
    file = file_of(cell, cell.shelf.file)
    file = cell.with_tensors(file, change(file))
    with pytest.raises(CheckpointError, match=re.escape(named)):
        DOORS[cell.door](file, **changes)


def renamed(key: str) -> str:
    """Return torchvision's key of a damaged tensor."""
    layer, _, leaf = key.removeprefix(STEM).partition(".conv.")
    stem = f"conv_proj.conv_last.{leaf}" if layer == "4" else f"conv_proj.conv_bn_relu_{layer}.0.{leaf}"
    return KEYS.get(key) or (stem if leaf else key.replace("patch_embed.proj", "conv_proj"))


for name in DAMAGES:
    situation(name, name, {}, table=CELLS)(damaged)
    situation(f"{name}, other classes", name, {"num_classes": 5}, table=CELLS)(damaged)


@situation("patchify, missing", {}, table=CELLS)
@situation("patchify, missing, other classes", {"num_classes": 5}, table=CELLS)
def patchify_missing(cell: Cell, changes: dict[str, Any]) -> None:
    file = cell.with_tensors(file_of(cell, cell.shelf.patchify), {WEIGHT: None})
    with pytest.raises(CheckpointError, match=re.escape(WEIGHT)):
        DOORS[cell.door](file, **changes)


@situation("misspelt argument", ArgumentTypeError, "num_layer.*num_layers", {"num_layer": 1},
           ("drop_pat_rate.*drop_path_rate", {"drop_pat_rate": 0.1}), table=CELLS)  # fmt: skip
@situation("image size 100", ArgumentError, "image_size.*16.*100.*96.*112", {"image_size": 100},
           ("img_size.*16.*100.*96.*112", {"img_size": 100}), table=CELLS)  # fmt: skip
@situation("patch size 14", ArgumentError, "(?=.*14)(?=.*16).*powers? of two", {"patch_size": 14, "image_size": 56},
           None, table=CELLS)  # fmt: skip
def mistake(cell: Cell, error: Any, message: str, changes: dict[str, Any], timms: Any) -> None:
    if cell.door == "load":
        with pytest.raises(error, match=f"(?s){timms[0]}") as caught:
            by_layout(cell.file(), **timms[1])
    else:
        with pytest.raises(error, match=f"(?s){message}") as caught:
            by_weights(file_of(cell, cell.shelf.file), **changes) if cell.door == "tag" else build(**changes)
    assert not re.search(r"config\.json|\w\(\)", str(caught.value))
