"""The caller's mistakes, and models without weights."""

from __future__ import annotations

import copy
import json
import re
import sys
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import nn

from convstem.errors import ArgumentError, ArgumentTypeError, ConvStemError
from tests.support.hub_server.client import run_python
from tests.support.promises.cell import STEM, Cell, assert_carried, images, situation
from tests.support.promises.matrix import KINDS, SIZE


def mistake(cell: Cell, error: Any, message: str, changes: dict[str, Any]) -> None:
    """Check that an error is about the caller's argument and names no file or function."""
    said = cell.refuses(cell.file(), error, message, **changes)
    assert not re.search(r"config\.json|\w\(\)", said), said


SPELLING = (ArgumentTypeError, "drop_pat_rate.*drop_path_rate", {"drop_pat_rate": 0.1})
NO_SUCH_BLOCK = ((ConvStemError, AssertionError), "99.*0", {"features_only": True, "out_indices": (99,)})  # or timm's
POWERS = "(?=.*14)(?=.*16).*powers? of two"

situation("misspelt argument", *SPELLING)(mistake)
situation("image size 100", ArgumentError, "img_size.*16.*100.*96.*112", {"img_size": 100})(mistake)
situation("out_indices 99", *NO_SUCH_BLOCK)(mistake)
situation("patch size 14", ArgumentError, POWERS, {"patch_size": 14, "img_size": 56})(mistake)


# ---- models without weights ------------------------------------------------------------------------------------------


@situation("patch size 8")
def patch_size_8(cell: Cell) -> None:
    model = timm.create_model(cell.kind.name, **cell.kind.arguments({"patch_size": 8})).eval()
    assert (model.patch_embed.patch_size, model.patch_embed.grid_size) == ((8, 8), (8, 8))
    with torch.no_grad():
        assert model(images()).isfinite().all()
        assert model.patch_embed(images()).flatten(1, -2).shape == (2, SIZE, model.embed_dim)


@situation("proj read")
def proj_read(cell: Cell) -> None:
    """Libraries that know only patch embeddings can read ``proj``, but adapters find no layer there."""
    model = cell.open(cell.file(in_chans=4))
    proj, width = model.patch_embed.proj, model.embed_dim
    assert tuple(proj.weight.shape) == (width, 4, 16, 16)
    assert (proj.in_channels, proj.out_channels) == (4, width)
    assert (tuple(proj.kernel_size), tuple(proj.stride)) == ((16, 16), (16, 16))
    nn.init.xavier_uniform_(proj.weight.data.flatten(1))  # as lightly does
    names = [*dict(model.named_modules()), *dict(model.named_parameters()), *model.state_dict()]
    assert f"{STEM}0.conv.weight" in names  # control
    assert [name for name in names if "patch_embed.proj" in name] == []


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
    """Like ``load_checkpoint(filter_fn=checkpoint_filter_fn)`` with the filter of the plain ViT's class."""
    plain, model = cell.shelf.plain(cell.kind), cell.open(cell.file())
    filtered = sys.modules[type(plain).__module__].checkpoint_filter_fn(plain.state_dict(), model)
    with pytest.warns(UserWarning, match="patch embedding|patchify"):
        model.load_state_dict(filtered)
    assert_carried(model, cell.shelf.fresh(cell.file()), plain)


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
    """Return the class of every name when timm is told to build NaFlex models instead."""
    names = [kind.name for kind in KINDS.values()]
    told = {"TIMM_USE_NAFLEXVIT": "true", "TIMM_USE_NAFLEX": "1"}  # timm's eva.py reads the second
    result = run_python(NAFLEX % names, HF_HUB_OFFLINE="1", **told)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


@situation("TIMM_USE_NAFLEXVIT")
def naflex(cell: Cell) -> None:
    found = classes_with_naflex()
    assert found[KINDS["plain"].name] == "NaFlexVit"  # control
    assert found[cell.kind.name] == (type(cell.shelf.fresh(cell.file())).__name__ if cell.kind.ours else "NaFlexVit")
