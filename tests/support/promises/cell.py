"""A cell of the matrix, the table of its checks, and shared assertions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from convstem.errors import CheckpointError
from convstem.transplanting.grid import enlarge_patches
from tests.support.assertions import relative_error
from tests.support.promises.files import OPEN, File, Shelf
from tests.support.promises.matrix import AFTER, KINDS, SIZE, Kind

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
        """The kind."""
        return KINDS[self.kind_name]

    @property
    def first_conv(self) -> str:
        """Key of the first convolution."""
        return f"{STEM}0.conv.weight" if self.kind.ours else "patch_embed.proj.weight"

    def file(self, **changes: Any) -> File:
        """Return the file of a whole model."""
        return self.shelf.file(self.kind, self.door, **changes)

    def patchify(self) -> File:
        """Return the file of a plain ViT."""
        return self.shelf.patchify(self.kind, self.door)

    def open(self, file: File, **changes: Any) -> Any:
        """Load the model through this door."""
        return OPEN[self.door](file, **changes).eval()

    def with_tensors(self, file: File, changes: dict[str, Any]) -> File:
        """Return a file with changed tensors; None removes one."""
        assert all(key in file.state for key, tensor in changes.items() if tensor is None)
        state = {key: tensor for key, tensor in {**file.state, **changes}.items() if tensor is not None}
        return file.but(self.shelf.passing(), state)

    def refuses(self, file: File, error: Any, message: str, **changes: Any) -> str:
        """Check that opening a file raises this error with this message; return the message."""
        with warnings.catch_warnings(), pytest.raises(error, match=f"(?s){message}") as caught:
            warnings.simplefilter("ignore")
            self.open(file, **changes)
        return str(caught.value)

    def refuses_file(self, file: File, message: str, **changes: Any) -> None:
        """Check that a file is refused. If it is loaded into a built model, the error is torch's."""
        self.refuses(file, RuntimeError if self.door in AFTER else CheckpointError, message, **changes)


CELLS: dict[str, Callable[[Cell], None]] = {}
"""Situation -> its check, for timm's names."""

Check = Callable[..., None]


def situation(name: str, *arguments: Any, table: dict[str, Callable[[Cell], None]] = CELLS) -> Callable[[Check], Check]:
    """Register a check with its arguments in a table of situations."""

    def enter(check: Check) -> Check:
        table[name] = partial(_call, check, arguments)
        return check

    return enter


def _call(check: Check, arguments: tuple[Any, ...], cell: Cell) -> None:
    check(cell, *arguments)


def images(channels: int = 3, size: int = SIZE) -> Tensor:
    """Return two images of noise."""
    return torch.randn(2, channels, size, size)


@torch.no_grad()
def assert_same(cell: Cell, file: File, actual: Any, expected: Any, size: int = SIZE, **changes: Any) -> None:
    """Check that two models' outputs are equal bit for bit, and those of a model without weights differ."""
    x = images(size=size)
    assert relative_error(cell.shelf.fresh(file, **changes)(x), expected(x)) > 1e-2  # negative control
    assert torch.equal(actual(x), expected(x))


@torch.no_grad()
def assert_carried(model: Any, fresh: Any, plain: Any, within: float = 2e-5, head: bool = True) -> None:
    """Check that a model's outputs equal the plain ViT's, and those of a model without weights differ.

    Args:
        model: our model.
        fresh: the same without weights.
        plain: the plain ViT.
        within: largest relative error.
        head: compare the head's outputs, not its inputs.
    """
    dtype = next(plain.parameters()).dtype
    x = torch.randn(2, plain.in_chans, *plain.patch_embed.img_size, dtype=dtype)
    larger = plain.patch_embed.patch_size == (14, 14) != model.patch_embed.patch_size
    ours = enlarge_patches(x, 14) if larger else x

    def output(vit: Any, x: Tensor) -> Tensor:
        return vit(x) if head else vit.forward_head(vit.forward_features(x), pre_logits=True)

    expected = output(plain, x)
    assert relative_error(output(fresh, ours), expected) > 1e-2  # negative control
    assert relative_error(output(model, ours), expected) < within
