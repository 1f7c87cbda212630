"""Turns a timm pretrained cfg into a verified file on this machine. All weights enter here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convstem.errors import HubError, InvalidFileError, RevisionMissingError
from convstem.files.cache import check_once
from convstem.hub.read import cached_config, fetch, fetch_all
from convstem.hub.repo_cache import file_digest
from convstem.hub.source import CONFIG, WEIGHTS, split_revision
from convstem.registry import catalog, tables

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

LOCATION = ("file", "hf_hub_filename", "hf_hub_id", "source", "url")
"""Fields of a pretrained cfg that say where the weights are."""


# Names of pickles -> the safetensors name to read instead; timm also tries that one first.
_SAFE_NAMES = {
    None: WEIGHTS,
    "pytorch_model.bin": WEIGHTS,
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}


@dataclass(frozen=True)
class Located:
    """A weights file on this machine."""

    path: Path
    immutable: bool
    """Whether parameters can share its memory: files in the Hub's cache or this package are never changed in place."""
    repo_id: str | None = None
    commit: str | None = None
    """Set for a file from the Hub."""

    @property
    def hub_id(self) -> str | None:
        """``org/name@commit`` for a file from the Hub, else None."""
        return self.repo_id and f"{self.repo_id}@{self.commit}"

    @property
    def overlay(self) -> dict[str, Any]:
        """The ``pretrained_cfg_overlay`` that makes timm read only this file, as a plain state dict."""
        return dict.fromkeys(LOCATION) | {"file": str(self.path), "custom_load": False}


def locate(cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Located | None:
    """Return the local safetensors file for a pretrained cfg, fetched and verified if it is on the Hub.

    None if the cfg names something else (a URL, a folder without safetensors, a state dict, a pickle).

    Raises:
        ArgumentError: the Hub file is not a safetensors file.
        HubError: the file cannot be fetched from the Hub.
        InvalidFileError: the embedded file is damaged.
    """
    if cfg.source != "hf-hub" and (cfg.state_dict or cfg.file):
        return _local(cfg)
    if not cfg.hf_hub_id:
        return None
    repository, revision = split_revision(cfg.hf_hub_id)
    filename = _SAFE_NAMES.get(cfg.hf_hub_filename, cfg.hf_hub_filename)
    if cfg.source == "hf-hub":
        return _beside_config(repository, revision, filename, cache_dir)
    file = fetch(repository, filename, revision, cache_dir=cache_dir)
    return Located(file.path, True, repository, file.commit)


def _beside_config(repository: str, revision: str | None, filename: str, cache_dir: str | Path | None) -> Located:
    """Return the weights from the commit of the config that timm has just read, after verifying that config."""
    config = cached_config(repository, revision, cache_dir)
    try:
        read = config.read_bytes() if config else None
    except FileNotFoundError:  # deleted since timm read it
        read = config = None
    try:
        commit = config.parent.name if config else revision
        files = fetch_all(repository, [CONFIG, filename], commit, cache_dir=cache_dir)
    except RevisionMissingError:  # a mirror named a commit that the repository does not have
        files = fetch_all(repository, [CONFIG, filename], revision, cache_dir=cache_dir)
    if read is not None and files[CONFIG].path.read_bytes() != read:
        raise HubError(
            f"{CONFIG} of {repository} was damaged in the cache when timm read it; it has been fetched again and "
            "is right now: make the same call once more"
        )
    return Located(files[filename].path, True, repository, files[filename].commit)


def _local(cfg: PretrainedCfg) -> Located | None:
    path = Path(str(cfg.file))
    if cfg.source == "local-dir":
        path /= WEIGHTS
        return Located(path, immutable=False) if path.exists() else None
    if cfg.state_dict or path.suffix != ".safetensors":
        return None
    embedded = path.is_relative_to(tables.data_dir("registry"))
    if embedded:
        check_embedded(path)
    return Located(path, immutable=embedded)


def check_embedded(path: Path) -> None:
    """Compare a weights file in ``registry/`` with its recorded hash, once.

    Raises:
        InvalidFileError: the content's sha256 differs.
    """
    known: Mapping[str, str | None] = {str(e.file): e.sha256 for e in catalog.weights().values() if e.file}
    expected = known.get(path.relative_to(tables.data_dir("registry")).as_posix())
    if expected:
        check_sha256(path, expected)


def check_sha256(path: Path, expected: str) -> None:
    """Raise ``InvalidFileError`` unless a file has this sha256. It is hashed once, and again after a change."""
    check_once(path, f"sha256 {expected}", partial(_hash, path, expected))


def _hash(path: Path, expected: str) -> None:
    actual = file_digest(path)
    if actual != expected:
        raise InvalidFileError(f"{path.name} is damaged: expected sha256 {expected}, got {actual}; reinstall convstem")
