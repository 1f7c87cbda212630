"""Fetching a whole model: weights, config and card of one commit, verified."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from convstem.errors import ArgumentError, MissingFileError
from convstem.files.paths import path_errors
from convstem.files.staging import replacing
from convstem.hosts.timm_tags import find_weights
from convstem.hub.read import fetch, fetch_all
from convstem.hub.source import CARD, CONFIG, WEIGHTS, split_revision
from convstem.registry.records import WeightsSpec


def pull(
    source: str,
    revision: str | None = None,
    out: str | Path | None = None,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return a folder with the verified ``model.safetensors`` and ``config.json`` (and card) of one commit.

    Args:
        source: ``org/name``, ``org/name@revision``, or a name that ``convstem list --pretrained`` prints; of one that
            is transplanted while loading, what is pulled is its source, so that it loads offline from then on.
        revision: branch, tag or commit.
        out: copy the files into this folder; default: stay in the Hub's cache. Needed for embedded weights.
        cache_dir: another Hub cache.
        token: a token, or False for none; default: huggingface_hub's login.

    Raises:
        ArgumentError: an invalid repository id, or embedded weights without ``out``.
        HubError: the files cannot be had from the Hub.
        PathError: ``out`` cannot be written.
        UnknownModelError: unknown name.
    """
    source = source.removeprefix("hf-hub:")
    entry = None if "/" in source else find_weights(source)
    if entry is not None and entry.file:
        return _write_embedded(entry, out)
    repo_id, at = entry.hub_name if entry else split_revision(source)
    files = fetch_all(repo_id, [CONFIG, WEIGHTS], revision or at, cache_dir=cache_dir, token=token)
    with suppress(MissingFileError):  # a card is welcome, not needed
        commit = files[WEIGHTS].commit
        files[CARD] = fetch(repo_id, CARD, commit, cache_dir=cache_dir, token=token)
    return _deliver({name: file.path for name, file in files.items()}, out)


def _write_embedded(entry: WeightsSpec, out: str | Path | None) -> Path:
    from convstem.publishing.cards.facts import facts_of_entry
    from convstem.publishing.cards.render import render
    from convstem.publishing.folder import finish_config
    from convstem.publishing.stage import stage_embedded

    if out is None:
        raise ArgumentError(
            f"{entry.name} ships inside convstem, there is nothing to download; give a folder to write to"
        )
    with path_errors("write", Path(out)), replacing(Path(out), last=CONFIG) as folder:
        stage_embedded(entry, folder)
        finish_config(folder, entry.license)
        (folder / CARD).write_text(render(facts_of_entry(entry)), encoding="utf-8")
    return Path(out)


def _deliver(files: dict[str, Path], out: str | Path | None) -> Path:
    if out is None:
        return files[WEIGHTS].parent
    with path_errors("write", Path(out)), replacing(Path(out), last=CONFIG) as folder:
        for name, path in files.items():
            shutil.copyfile(path, folder / name)
    return Path(out)
