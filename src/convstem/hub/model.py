"""Reads saved models of ours from the Hub or a folder, and builds the timm model of a source, all verified.

Errors of timm or the Hub about a source become convstem errors.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, split_model_name_tag
from torch import nn

from convstem.errors import ArgumentError, CheckpointError, ConvStemError, HubError, MissingPathError, UnknownModelError
from convstem.files.safetensors import Stored, check_finite, check_weights, nonfinite_allowed
from convstem.hub.config import LOADED, Step, add, check_stated, forget, parts, read_config, read_json, record
from convstem.hub.failures import again_if_deleted
from convstem.hub.limits import check_as_saved, check_fits_header, short
from convstem.hub.locate import LOCATION, Located, locate
from convstem.hub.read import HubFile, fetch_all
from convstem.hub.source import CONFIG, PICKLES, WEIGHTS, Source, source_of


@dataclass(frozen=True)
class HubModel:
    """A saved model on this machine."""

    folder: Path
    config: dict[str, Any]
    """Content of ``config.json``, checked."""
    weights: Path
    """From a repository: verified. In a folder without a safetensors file it may be a pickle."""
    repo_id: str | None = None
    commit: str | None = None
    """For a repository: 40 hexadecimal digits."""
    immutable: bool = False
    """Whether parameters can share the files' memory: files in the Hub's cache are never changed in place."""

    @property
    def hub_id(self) -> str | None:
        """``org/name@commit`` for a repository, else None."""
        return self.repo_id and f"{self.repo_id}@{self.commit}"


class SavedCfg(dict[str, Any]):
    """A saved model's pretrained cfg, as timm makes it from a config, plus its weights file.

    ``timm.create_model`` passes it to the entrypoint, which then need not check the config or find the file again.

    Args:
        cfg: ``pretrained_cfg`` of the config, with classes and labels from its root.
        model: the saved model it belongs to.
    """

    def __init__(self, cfg: Mapping[str, Any], model: HubModel) -> None:
        where = {"source": "hf-hub", "hf_hub_id": model.hub_id}
        if model.repo_id is None:
            where = {"source": "local-dir", "file": str(model.folder)}
        super().__init__({**cfg, **where, "architecture": model.config["architecture"]})
        safe = model.weights.suffix == ".safetensors"
        self.located = Located(model.weights, model.immutable, model.repo_id, model.commit) if safe else None


def fetch_model(source: Source, cache_dir: str | Path | None = None, token: str | bool | None = None) -> HubModel:
    """Return a repository's model, all files from one commit. Weights are fetched only after the config is accepted.

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
    """Return the model in a folder.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.

    Raises:
        InvalidFileError, UnsupportedModelError: see ``read_config``.
        MissingPathError: a file is missing.
    """
    config = read_config(folder / CONFIG)
    found = sorted(path for path in folder.iterdir() if path.name.endswith((".safetensors", *PICKLES)))
    if not found:
        raise MissingPathError(f"{folder} has a {CONFIG}, but no {WEIGHTS}")
    weights = folder / WEIGHTS
    return HubModel(folder, config, weights if weights in found else found[0])


@again_if_deleted
def create_source(
    source: str | os.PathLike[str] | Source, pretrained: bool = True, check: Callable[[nn.Module], object] | None = None
) -> nn.Module:
    """Return a timm model in eval mode. Its weights are fetched and verified before it is built.

    Args:
        source: timm name (with tag), a repository or a folder.
        pretrained: load its weights.
        check: for a name, called with the model on the meta device before weights are fetched; it may raise to stop.

    Raises:
        ArgumentError: wrong kind of source, a model without pretrained weights, or the default device is meta.
        CheckpointError: the repository or folder does not hold a model that timm can load.
        HubError: the weights cannot be fetched from the Hub, or exist only without a hash.
        InvalidFileError: the weights are damaged or not finite.
        MissingPathError: no such folder, or no config in it.
        UnknownModelError: unknown name or tag; the message lists the nearest names, or the tags.
    """
    found = source_of("transplant", source)
    if pretrained and torch.empty(0).is_meta:
        raise ArgumentError(
            f"torch's default device is meta, which holds no values, so the weights of {found} would be lost: make "
            "this call outside `with torch.device('meta')`, or pass pretrained=False"
        )
    if found.kind == "name":
        _check_name(found.name, pretrained)
        if check and pretrained:
            with torch.device("meta"):
                check(timm.create_model(split_model_name_tag(found.name)[0]))
        return _from_tag(found.name) if pretrained else timm.create_model(found.name).eval()
    try:
        return _from_hub(found, pretrained) if found.kind == "repository" else _from_folder(found.path, pretrained)
    except ConvStemError:
        raise
    except Exception as error:  # timm and torch may raise anything for a foreign config or weights
        raise CheckpointError(
            f"timm cannot load {found} as its {CONFIG} describes it: {type(error).__name__}: {error}"
        ) from error


def _from_hub(source: Source, pretrained: bool) -> nn.Module:
    names = [CONFIG, WEIGHTS] if pretrained else [CONFIG]
    files = fetch_all(source.repo_id, names, source.revision)
    model = _from_folder(files[CONFIG].path.parent, pretrained)
    place = f"{source.repo_id}@{files[CONFIG].commit}"
    _say_location(model, {"source": "hf-hub", "hf_hub_id": place})
    if pretrained:
        add(model, Step(LOADED, place))
    return model


def _from_folder(folder: Path, pretrained: bool) -> nn.Module:
    if not (folder / CONFIG).is_file():
        raise MissingPathError(f"{folder} is not the folder of a timm model: it has no {CONFIG}")
    header = _check_config(folder, pretrained)
    model = timm.create_model(f"local-dir:{folder}", pretrained=pretrained).eval()
    if "pos_embed" in header:
        check_as_saved(model.state_dict(), {"pos_embed": header["pos_embed"]})
    if not pretrained:
        forget(model)
    if pretrained and not nonfinite_allowed():
        check_finite(model.state_dict(), folder.name)
    return model


def _check_config(folder: Path, pretrained: bool) -> Mapping[str, Stored]:
    """Refuse any timm model's config that does not fit the weights beside it. Return the weights' header."""
    config = read_json(folder / CONFIG)
    if "pretrained_cfg" not in config:  # timm's old flat format
        cfg = {name: value for name, value in config.items() if name not in ("labels", "num_features")}
        config = {"architecture": config.get("architecture"), "pretrained_cfg": cfg}
    cfg, args = parts(config)
    if not timm.is_model(config["architecture"]):
        raise CheckpointError(f"timm has no model {short(config['architecture'])}, which {CONFIG} names")
    check_stated(config["architecture"], cfg, args)
    if not (pretrained and (folder / WEIGHTS).is_file()):
        return {}
    header = check_weights(folder / WEIGHTS)
    check_fits_header(args, cfg, header)
    return header


def _from_tag(name: str) -> nn.Module:
    cfg = get_pretrained_cfg(name)
    located = locate(cfg)
    if located is None:
        raise HubError(
            f"the weights of {name} are not on the Hub but only at {cfg.url}, without a hash to compare them with: "
            f"download them yourself and transplant timm.create_model({name.partition('.')[0]!r}, checkpoint_path=FILE)"
        )
    check_weights(located.path)
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=located.overlay).eval()
    where = {field: getattr(cfg, field) for field in LOCATION if getattr(cfg, field) is not None}
    _say_location(model, where | ({"hf_hub_id": located.hub_id} if located.hub_id else {}))
    record(model, [Step(LOADED, located.hub_id or name)])
    return model


def _say_location(model: Any, where: dict[str, Any]) -> None:
    """Replace the local location in a model's pretrained cfg by the public one, commit included."""
    kept = {key: value for key, value in model.pretrained_cfg.items() if key not in LOCATION}
    model.pretrained_cfg = model.default_cfg = {**kept, **where}


def _check_name(name: str, pretrained: bool) -> None:
    """Raise unless timm has this name and, if ``pretrained``, weights for it."""
    base, tag = split_model_name_tag(name)
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(sorted(near))}?" if near else "timm.list_models() lists all names"
        raise UnknownModelError(f"timm has no model {base!r}; {hint}")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{base}.*", pretrained=True)]
    if tag and tag not in tags:
        raise UnknownModelError(f"timm's {base} has no pretrained tag {tag!r}; it has {', '.join(sorted(tags)) or '-'}")
    if pretrained and not getattr(get_pretrained_cfg(name), "has_weights", False):
        raise ArgumentError(
            f"timm has no pretrained weights for {base}: choose from timm.list_models(pretrained=True), or pass "
            "pretrained=False for random ones"
        )
