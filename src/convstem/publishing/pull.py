"""Fetches a whole model (weights, config and card of one commit), verified."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from filecmp import cmp
from pathlib import Path

from convstem.errors import ArgumentError
from convstem.hosts.describe import find_weights
from convstem.hub.failures import again_if_deleted
from convstem.hub.read import HubFile, fetch_all
from convstem.hub.source import CARD, CONFIG, WEIGHTS, source_of
from convstem.publishing.card import render
from convstem.publishing.card_facts import facts_of_entry
from convstem.publishing.folder import finish, save_embedded, write_folder
from convstem.registry.records import WeightsSpec


@again_if_deleted
def pull(
    source: str,
    revision: str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return a folder with the verified ``model.safetensors`` and ``config.json`` (and card) of one commit.

    Args:
        source: ``org/name``, ``org/name@revision``, or a name that ``convstem list --pretrained`` prints. For a name
            that is transplanted on loading, its source is pulled, so that the name then loads offline.
        revision: branch, tag or commit.
        out: copy the files into this folder; default: leave them in the Hub's cache. Needed for embedded weights.
        overwrite: replace a model in ``out``; without it only an identical one may be there.
        cache_dir: another Hub cache.
        token: a token, or False for none; default: huggingface_hub's login.

    Raises:
        ArgumentError: an invalid repository id, a path, or embedded weights without ``out``.
        ExistingPathError: ``out`` has other files of these names.
        HubError: the files cannot be fetched from the Hub.
        PathError: ``out`` cannot be written.
        UnknownModelError: unknown name.
    """
    found = source_of("pull", source)
    entry = find_weights(found.name) if found.kind == "name" else None
    folder = None if out is None else Path(out)
    if entry is not None and entry.file:
        if folder is None:
            raise ArgumentError(
                f"{entry.name} ships inside convstem, so nothing is downloaded; give a folder to write to"
            )
        write_folder(folder, lambda staged: write_embedded(entry, staged), overwrite)
        return folder
    repo_id, at = entry.hub_name if entry else (found.repo_id, found.revision)
    files = fetch_all(repo_id, [CONFIG, WEIGHTS], revision or at, optional=[CARD], cache_dir=cache_dir, token=token)
    if folder is None:
        return files[WEIGHTS].path.parent
    write_folder(folder, lambda staged: _copy(files, folder, staged), overwrite)
    return folder


def write_embedded(entry: WeightsSpec, folder: Path) -> None:
    """Write the model and card of a registry entry with embedded weights."""
    save_embedded(entry, folder)
    finish(folder, entry.license, lambda config: render(facts_of_entry(entry)))


def _copy(files: Mapping[str, HubFile], folder: Path, staged: Path) -> None:
    """Stage the files for a folder. Identical files already there are linked, so that many processes copy only once."""
    for name, file in files.items():
        there = folder / name
        if there.is_file() and not there.is_symlink() and cmp(there, file.path, shallow=False):
            with suppress(OSError):  # a file system without links
                os.link(there, staged / name)
        if not (staged / name).exists():
            shutil.copyfile(file.path, staged / name)
