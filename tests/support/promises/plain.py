"""Files of a plain ViT: its state dict, and files that timm's own filter turns into one."""

from __future__ import annotations

import copy
import gc
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from convstem.errors import ArgumentError, CheckpointError, ConvStemError
from tests.support.jax_checkpoints import npz
from tests.support.promises.cell import HALF, Cell, assert_carried, situation
from tests.support.promises.matrix import AFTER, CONFIG
from tests.support.promises.whole import WEIGHT


def told(cell: Cell) -> AbstractContextManager[Any]:
    """Expect the warning that a state dict is carried into an existing model's stem."""
    return pytest.warns(UserWarning, match="patch embedding|patchify") if cell.door in AFTER else nullcontext()


@situation("patchify", torch.float32, 2e-5)
@situation("patchify in float64", torch.float64, 1e-9)
def patchify(cell: Cell, dtype: torch.dtype, within: float) -> None:
    file, plain = cell.patchify(), copy.deepcopy(cell.shelf.plain(cell.kind)).to(dtype)
    with told(cell):
        model = cell.open(file, dtype=dtype)
    assert_carried(model, cell.shelf.fresh(file, dtype=dtype), plain, within)


@situation("patchify, strict=False")
def patchify_lenient(cell: Cell) -> None:
    file = cell.patchify()
    model = copy.deepcopy(cell.shelf.fresh(file))
    with told(cell):
        model.load_state_dict(file.state, strict=False)
    assert_carried(model, cell.shelf.fresh(file), cell.shelf.plain(cell.kind))


REFUSED_AFTER = {"img_size": "pos_embed", "num_classes": "head.weight", "in_chans": "channels|in_chans|patch_embed",
                 "patch_size": "patch|pos_embed"}  # fmt: skip
"""Argument -> what the error names when weights are loaded into a model built with another value."""

STATED = ({"in_chans": 5}, {"patch_size": 8})
"""Arguments that contradict a config that states the stem. They may be refused, but never give random weights."""


@situation("patchify, image size", {"img_size": HALF})
@situation("patchify, classes", {"num_classes": 5})
@situation("patchify, 1 channel", {"in_chans": 1})
@situation("patchify, 5 channels", {"in_chans": 5})
@situation("patchify, patch size", {"patch_size": 8})
def patchify_otherwise(cell: Cell, changes: dict[str, Any]) -> None:
    """The result equals timm's own loading of the file into a plain ViT with the same changed arguments."""
    file, [name] = cell.patchify(), changes
    if cell.door in AFTER and (name != "img_size" or "pos_embed" in file.state):
        cell.refuses_file(file, REFUSED_AFTER[name], **changes)
        return
    try:
        with told(cell):
            model = cell.open(file, **changes)
    except ConvStemError:
        if cell.door in CONFIG and changes in STATED:
            return
        raise
    plain = cell.shelf.reading(cell.kind, **changes)
    assert_carried(model, cell.shelf.fresh(file, **changes), plain, head=name != "num_classes")
    assert model.num_classes == plain.num_classes


@situation("patchify, missing", {})
@situation("patchify, missing, other classes", {"num_classes": 5})
def patchify_missing(cell: Cell, changes: dict[str, Any]) -> None:
    cell.refuses_file(cell.with_tensors(cell.patchify(), {WEIGHT: None}), re.escape(WEIGHT), **changes)


@situation("patchify into a narrow stem")
def patchify_narrow(cell: Cell) -> None:
    """It is refused with the widths that would suffice, never approximated or skipped."""
    error = (ConvStemError, RuntimeError) if cell.door in AFTER else ArgumentError
    cell.refuses(cell.patchify(), error, r"channels.*\d", stem_channels=(8, 16, 32, 64))


# ---- files that timm's own filter reads ------------------------------------------------------------------------------


def mae(state: dict[str, Tensor]) -> dict[str, Any]:
    decoder = {f"decoder_{key}": torch.ones(1, 17, 8) for key in ("pos_embed", "embed.weight", "blocks.0.norm1.weight")}
    return {"model": {**state, "mask_token": torch.zeros(1, 1, 8), **decoder}}


WRAPPED: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "OpenCLIP": lambda state: {f"visual.trunk.{key}": tensor for key, tensor in state.items()},
    "DINOv2": lambda state: {**state, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])},
    "I-JEPA": lambda state: {"encoder": {f"module.{key}": tensor for key, tensor in state.items()}},
    "MAE with decoder": mae,
}


def foreign(cell: Cell, whose: str) -> None:
    source = cell.shelf.plain(cell.kind, num_classes=0)
    path = cell.shelf.passing().with_suffix(".pth")
    torch.save(WRAPPED[whose](source.state_dict()), path)
    assert_read(cell, path, {}, source)


for name in WRAPPED:
    situation(name, name)(foreign)


@situation("JAX .npz")
def jax(cell: Cell) -> None:
    source = cell.shelf.plain(cell.kind, num_classes=0)
    path = cell.shelf.passing().with_suffix(".npz")
    numpy.savez(path, **npz(source.state_dict(), source.blocks[0].attn.num_heads, big_vision=False))
    if cell.door == "checkpoint_path":  # timm's own reader takes every stem for a ResNet's
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # timm's reader leaves the file open
            cell.refuses(
                replace(cell.file(num_classes=0), given=path), CheckpointError, "pretrained_cfg_overlay.*convert"
            )
            gc.collect()
        return
    assert_read(cell, path, {"custom_load": True}, source)


def assert_read(cell: Cell, path: Path, facts: dict[str, Any], source: Any) -> None:
    """Check that our model reads a file as timm's plain ViT does."""
    ours = replace(cell.file(num_classes=0), given=path, facts=facts)
    theirs = replace(ours, name=cell.kind.plain, arguments=cell.kind.plain_arguments({"num_classes": 0}))
    assert_carried(cell.open(theirs), cell.shelf.fresh(theirs), source, within=1e-6)  # control
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # from checkpoint_path: the file is carried into the stem
        model = cell.open(ours)
    assert_carried(model, cell.shelf.fresh(ours), source)
