"""What exists, by name, from the registry's rows as they stand in their files.

This is all that registration reads, because every import of timm or torchvision pays for it. The records of ``catalog``
are made from the same rows, and checked, when one is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from convstem.registry import tables

PYRAMID = "_pyramid"
"""End of the further timm names of an architecture whose ``features_only=True`` is the feature pyramid."""

FIRST_IN_EMBED = "backbone.0.conv"
"""A stem's first convolution within the patch embedding, in timm's layout; timm adapts it to other channel counts."""

FIRST_CONV = f"patch_embed.{FIRST_IN_EMBED}"
"""The same within a plain ViT."""

RESIZED = 16
"""Pixels per patch of a model whose own patch size stride-2 layers cannot make: the nearest power of two to 14."""

Rows = Mapping[str, Mapping[str, Any]]
"""Rows of a file of the registry, by name."""


@cache
def rows(file: str) -> Rows:
    """Return the rows of ``registry/<file>.json`` by name, in their order.

    ``architectures`` are those of our own families, ``weights`` and ``timm_weights`` their pretrained tags, ``trunks``
    timm architectures on a conv stem under names of ours; ``timm_trunks`` has what is known of every timm architecture
    whose patch embedding a stem can replace, by timm name.

    Raises:
        RegistryError: no such file, not JSON, or a name given twice.
    """
    return tables.read_tables(tables.data_dir("registry") / f"{file}.json")


def weights_rows() -> Mapping[str, Rows]:
    """Return the weights of our own families by architecture and ``architecture.tag``; the first is the default."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, row in [*rows("weights").items(), *rows("timm_weights").items()]:
        groups.setdefault(name.partition(".")[0], {})[name] = row
    return groups


def families() -> list[str]:
    """Return the names of our own families and of named trunks, which also exist with ``_pyramid`` behind them."""
    return [*rows("architectures"), *rows("trunks")]


def trunks() -> dict[str, str]:
    """Return our name -> timm's for every architecture on another timm trunk."""
    named = {name: str(row.get("trunk")) for name, row in rows("trunks").items()}
    return {**named, **{by_rule(trunk): trunk for trunk in rows("timm_trunks")}}


def by_rule(trunk: str) -> str:
    """Return the name that is made by rule for a timm architecture."""
    return f"{trunk}_convstem"


def without_size(architecture: str) -> str:
    """Return a timm name without the image size at its end, if it has one; DINOv3's, among others, have none."""
    name, _, size = architecture.rpartition("_")
    return name if size.isdigit() else architecture


def resized_from(trunk: str) -> int | None:
    """Return the patch size of a timm architecture whose patches a stem makes larger; None of all others."""
    return rows("timm_trunks").get(trunk, {}).get("resized_from")  # catalog.named_trunks reports an unknown trunk


def resized_input(size: Sequence[int], old: int, new: int) -> tuple[int, int, int]:
    """Return the image [channels, height, width] that has as many patches of ``new`` pixels as this one of ``old``."""
    channels, height, width = size
    return channels, height // old * new, width // old * new


def what_is_kept(resized: int | None) -> str:
    """Return in a few words what a transplant keeps, given the patch size its filters were resized from, if any."""
    return f"patches resized from {resized} to {RESIZED} pixels" if resized else "function preserved"
