"""A saved model of ours, from the Hub or a folder: its config is checked before its weights are fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convstem.errors import MissingPathError
from convstem.hub.config import read_config
from convstem.hub.locate import Located
from convstem.hub.read import HubFile, fetch_all
from convstem.hub.source import CONFIG, PICKLES, WEIGHTS, Source


@dataclass(frozen=True)
class HubModel:
    """A saved model on this machine."""

    folder: Path
    config: dict[str, Any]
    """Content of its ``config.json``, checked."""
    weights: Path
    """Of a repository verified; in a folder it may be a pickle, where there is no safetensors file."""
    repo_id: str | None = None
    commit: str | None = None
    """Of a repository: 40 hexadecimal digits."""
    immutable: bool = False
    """Nobody writes to its files in place: they are in the Hub's cache, so parameters can share their memory."""

    @property
    def hub_id(self) -> str | None:
        """``org/name@commit`` of a repository."""
        return self.repo_id and f"{self.repo_id}@{self.commit}"


class SavedCfg(dict[str, Any]):
    """The pretrained cfg of a saved model, as timm makes it of a config, that knows its file.

    ``timm.create_model`` hands it to the entrypoint, which need not check the config or look for the file again.

    Args:
        cfg: ``pretrained_cfg`` of the config, with the classes and labels that its root states.
        model: where it came from.
    """

    def __init__(self, cfg: Mapping[str, Any], model: HubModel) -> None:
        where = {"source": "hf-hub", "hf_hub_id": model.hub_id}
        if model.repo_id is None:
            where = {"source": "local-dir", "file": str(model.folder)}
        super().__init__({**cfg, **where, "architecture": model.config["architecture"]})
        safe = model.weights.suffix == ".safetensors"
        self.located = Located(model.weights, model.immutable, model.repo_id, model.commit) if safe else None


def fetch_model(source: Source, cache_dir: str | Path | None = None, token: str | bool | None = None) -> HubModel:
    """Return the model of a repository, fetched once at one commit; a config that is not ours costs no weights.

    Args:
        source: a repository.
        cache_dir, token: see ``fetch``.

    Raises:
        ArgumentError, HubError: see ``fetch``.
        InvalidFileError, UnsupportedModelError: see ``read_config``.
    """
    config: dict[str, Any] = {}

    def check(file: HubFile) -> None:
        if file.path.name == CONFIG:
            config.update(read_config(file.path))

    names = [CONFIG, WEIGHTS]
    files = fetch_all(source.repo_id, names, source.revision, check=check, cache_dir=cache_dir, token=token)
    weights = files[WEIGHTS]
    return HubModel(weights.path.parent, config, weights.path, weights.repo_id, weights.commit, immutable=True)


def read_model(folder: Path) -> HubModel:
    """Return the model of a folder.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.

    Raises:
        InvalidFileError, UnsupportedModelError: see ``read_config``.
        MissingPathError: one of the two is not there.
    """
    config = read_config(folder / CONFIG)
    found = sorted(path for path in folder.iterdir() if path.name.endswith((".safetensors", *PICKLES)))
    if not found:
        raise MissingPathError(f"{folder} has a {CONFIG}, but no {WEIGHTS}")
    weights = folder / WEIGHTS
    return HubModel(folder, config, weights if weights in found else found[0])
