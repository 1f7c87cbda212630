"""Pushes a model: stages it as a folder, checks it, adds a card, and commits."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchvision.models import VisionTransformer

from convstem.errors import (
    ArgumentError,
    ArgumentTypeError,
    InvalidFileError,
    MissingPathError,
    UnsupportedModelError,
)
from convstem.features import PyramidLevels
from convstem.files.checkpoint import CHECKPOINTS
from convstem.files.paths import path_errors
from convstem.files.staging import scratch_folder
from convstem.hosts.describe import find_weights
from convstem.hub.config import read_json, read_text
from convstem.hub.source import CARD, CONFIG, EVALUATION, FILES, WEIGHTS, check_repo_id, source_of
from convstem.models.twins import as_timm_model
from convstem.publishing.card import located, render, write_evaluation
from convstem.publishing.card_facts import CardFacts, facts_of_config, facts_of_entry
from convstem.publishing.commit import PushResult, Target, push_folder
from convstem.publishing.folder import finish, save
from convstem.publishing.trained import save_checkpoint
from convstem.publishing.verify import require, verify_folder
from convstem.registry.licenses import check_license, license_of_card, named_license
from convstem.upstream import timm_feature_getter


def push(
    model_or_dir: Any,
    repo_id: str,
    *,
    license: str,
    tag: str | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    card: str | Path | None = None,
    metrics: Mapping[str, float] | None = None,
    dataset: str = "",
    labels: Sequence[str] | None = None,
    use_ema: bool = False,
    architecture: str | None = None,
    base_model: str | None = None,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> PushResult:
    """Push a conv-stem model to the Hub as one commit that timm, torchvision and transformers can load.

    Pushing the same content again sends nothing. Pickled weights of earlier pushes are removed in the same commit.

    Args:
        model_or_dir: one of our models (timm's, torchvision's, transplanted), a folder with ``config.json`` and
            ``model.safetensors``, or a checkpoint of timm's train.py.
        repo_id: ``org/name``; created if needed.
        license: licence of the weights, for example ``apache-2.0``; there is no default.
        tag: a registry ``architecture.tag``; its description, metrics and recipe go into the card.
        private: create the repository private.
        revision: branch to push to, created if needed; default: main.
        create_pr: open a pull request instead of committing.
        card: a model card as text, or its file as a ``Path`` or a string ending in ``.md``; default: the folder's
            README.md, or a generated one.
        metrics: measured metrics for the card, such as ``{"acc@1": 81.2}``.
        dataset: dataset of the metrics. For CIFAR-10, ImageNet-1k and a Hub dataset ``org/name`` they are also sent as
            ``.eval_results/convstem.yaml``.
        labels: class names, in order; default: the model's own.
        use_ema: push the averaged weights of a checkpoint.
        architecture: that of a checkpoint, if the ``hf-hub:`` or ``local-dir:`` source it was trained from is gone.
        base_model: the repository that the weights were made from; default: the one recorded in the model, if any.
        dry_run: only report what would be done; without a network, nothing is compared with the Hub.
        token: a token, or False for none; default: huggingface_hub's login.

    Raises:
        ArgumentError: no licence, a card with another licence, an invalid ``repo_id``, metrics without a dataset, or
            a model without weights or stem.
        ArgumentTypeError: neither a model nor a path.
        HubError: the Hub refuses, somebody else pushed meanwhile, or the weights do not match the config.
        InvalidFileError, PathError: the folder or checkpoint is invalid or cannot be read.
        UnknownModelError: no such ``tag``.
        UnsupportedModelError: a model of another kind.
    """
    check_license(license)
    check_repo_id(repo_id)
    if metrics and not (dataset or tag):
        raise ArgumentError(
            "metrics need the dataset they were measured on: pass dataset= (--dataset on the command line), such as "
            "CIFAR-10"
        )
    target = Target(repo_id, revision, private, create_pr, token)
    with scratch_folder(Path(tempfile.gettempdir()), "convstem-push-") as folder:
        stage(model_or_dir, folder, use_ema, architecture)
        named: dict[str, Any] = {} if labels is None else {"label_names": list(labels)}
        finish(folder, license, **named)
        require(verify_folder(folder, "the model to push"), skip=("license",))
        more = {"metrics": dict(metrics or {}), "dataset": dataset, "base_model": base_model}
        write_card(folder, repo_id, license, tag, card, more)
        write_evaluation(_facts(folder, repo_id, license, tag, more), folder)
        return push_folder(folder, target, dry_run)


def write_card(
    folder: Path, repo_id: str, license: str, tag: str | None, card: str | Path | None, more: Mapping[str, Any]
) -> None:
    """Write README.md: the given card, else the folder's own, else a generated one. Its licence must be ``license``.

    If a folder's own card says ``other``, as from ``convert`` without a licence, it is replaced by ``license``.

    Args:
        folder: the staged model.
        repo_id, license, tag, card: see ``push``.
        more: further fields of ``CardFacts`` for a generated card; empty ones are left out.

    Raises:
        ArgumentError: the card names another licence.
        PathError: the card cannot be read.
        UnknownModelError: no such tag.
    """
    path = folder / CARD
    if card is not None:
        text = _text(card)
    elif path.is_file():
        text = named_license(located(read_text(path), repo_id), license)
    else:
        text = render(_facts(folder, repo_id, license, tag, more))
    named = license_of_card(text)
    if named != license:
        raise ArgumentError(
            f"the card says license: {named}, but license={license!r} was given: write {license} in the metadata at "
            "its head, give another card with card= (--card), or remove README.md to have one made"
        )
    path.write_text(text, encoding="utf-8")


def _text(card: str | Path) -> str:
    if isinstance(card, str) and not card.endswith(".md"):
        return card
    with path_errors("read", card):
        return read_text(Path(card))


def _facts(folder: Path, repo_id: str, license: str, tag: str | None, more: Mapping[str, Any]) -> CardFacts:
    known: dict[str, Any] = {}
    if tag is not None:
        facts = facts_of_entry(find_weights(tag))
        known = {k: getattr(facts, k) for k in ("dataset", "description", "metrics", "metrics_source", "recipe")}
    return facts_of_config(
        read_json(folder / CONFIG), repo_id, license, **{**known, **{k: v for k, v in more.items() if v}}
    )


def stage(source: Any, folder: Path, use_ema: bool = False, architecture: str | None = None) -> None:
    """Write a model's ``config.json`` and ``model.safetensors`` into a folder. A source folder's card is copied too.

    Args:
        source: one of our models (timm or torchvision), a folder with the two files, or a checkpoint of timm's
            train.py.
        folder: where to write.
        use_ema: take the averaged weights of a checkpoint.
        architecture: that of a checkpoint, if the one it names cannot be found.

    Raises:
        ArgumentError: a model without weights or conv stem, or a checkpoint of unknown architecture.
        ArgumentTypeError: neither a model nor a path.
        InvalidFileError: another kind of checkpoint, or one that cannot be opened safely.
        MissingPathError: no such file, or a folder without both files.
        UnsupportedModelError: a model or checkpoint of another architecture.
    """
    from torch import nn

    source = unwrapped(source)
    if isinstance(source, nn.Module):
        _check_whole(source)
        return save(as_timm_model(source), folder, original=source)
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentTypeError(f"push takes a model, a folder or a checkpoint file; got {type(source).__name__}")
    found = source_of("push", source)
    if found.kind == "folder":
        with path_errors("read", found.path):
            return _copy(found.path, folder)
    if found.path.suffix not in CHECKPOINTS:
        raise InvalidFileError(
            f"{found.path.name} is not a checkpoint of timm's train.py ({', '.join(CHECKPOINTS)}); `convstem convert "
            f"{found.path} --out FOLDER` makes a folder that can be pushed"
        )
    return save_checkpoint(found.path, folder, use_ema, architecture)


_WRAPPERS = {
    "AveragedModel": "module",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "OptimizedModule": "_orig_mod",  # torch.compile's
}
"""Wrapper class of torch or timm -> its attribute that holds the model."""


def unwrapped(model: Any) -> Any:
    """Return the model inside wrappers that compile, distribute or average it; return anything else unchanged."""
    while (inside := _WRAPPERS.get(type(model).__name__)) and hasattr(model, inside):
        model = getattr(model, inside)
    return model


def _check_whole(model: Any) -> None:
    """Raise ``UnsupportedModelError`` naming what was given, unless it is a model of timm or torchvision."""
    if isinstance(model, VisionTransformer) or (hasattr(model, "num_classes") and hasattr(model, "pretrained_cfg")):
        return
    kind = type(model).__name__
    if isinstance(model, (PyramidLevels, timm_feature_getter())):
        raise UnsupportedModelError(
            f"a {kind} holds only the part of a model that its maps need: push the whole model; features_only=True or "
            "convstem.feature_pyramid makes the maps from it"
        )
    inside = [name for name, module in model.named_modules() if name and getattr(module, "pretrained_cfg", None)]
    where = f"; it has one inside: push its .{inside[0]}" if inside else ""
    raise UnsupportedModelError(f"push takes a model of timm or torchvision; got a {kind}{where}")


def _copy(source: Path, folder: Path) -> None:
    missing = [name for name in (CONFIG, WEIGHTS) if not (source / name).is_file()]
    if missing:
        raise MissingPathError(f"{source} has no {' and no '.join(missing)}; a pushed folder needs both files")
    for name in (*FILES, EVALUATION):
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
