"""Pushing a model: what a user has is staged as a folder, checked, given a card, and committed."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convstem.errors import ArgumentError, ArgumentTypeError, ConvStemError, InvalidFileError, MissingPathError
from convstem.files.checkpoint import CHECKPOINTS, open_checkpoint
from convstem.files.paths import path_errors
from convstem.files.staging import scratch_folder
from convstem.hosts.describe import find_weights
from convstem.hub.config import check_ours, read_config, read_json
from convstem.hub.provenance import SCRATCH, TRANSPLANTED, TUNED, Step, record, steps
from convstem.hub.read import fetch
from convstem.hub.source import CARD, CONFIG, FILES, WEIGHTS, check_repo_id, source_of, split_revision
from convstem.models.twins import as_timm_model
from convstem.publishing.cards.facts import CardFacts, facts_of_config, facts_of_entry
from convstem.publishing.cards.render import located, render
from convstem.publishing.commit import PushResult, Target, push_folder
from convstem.publishing.folder import finish, save
from convstem.publishing.verify import require, verify_folder
from convstem.registry import catalog
from convstem.registry.licenses import check_license, license_of_card

_OTHER_STARTS = ("initial_checkpoint", "pretrained_path", "resume")
"""Arguments of train.py that name weights on the trainer's machine, about which nothing is known."""


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
    use_ema: bool = False,
    arch: str | None = None,
    base_model: str | None = None,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> PushResult:
    """Push a conv-stem model to the Hub as one commit that timm, torchvision users and transformers can load.

    Pushing the same content again sends nothing. Pickled weights of earlier pushes are removed in the same commit.

    Args:
        model_or_dir: one of our models (timm's, torchvision's, transplanted), a folder with ``config.json`` and
            ``model.safetensors``, or a checkpoint of timm's train.py.
        repo_id: ``org/name``; created if needed.
        license: licence of the weights, for example ``apache-2.0``; there is no default.
        tag: the registry's ``architecture.tag`` whose description, metrics and recipe go into the card.
        private: create the repository private.
        revision: branch to push to, created if needed; default: main.
        create_pr: open a pull request instead of committing.
        card: a model card, as text, as a ``Path``, or as a string that ends in ``.md``; default: the folder's
            README.md, or a generated one.
        metrics: measured figures for the card, such as ``{"acc@1": 81.2}``.
        dataset: what the metrics were measured on.
        use_ema: of a checkpoint, push the averaged weights.
        arch: of a checkpoint, its architecture, where the ``hf-hub:`` or ``local-dir:`` that it was trained from
            cannot be read any more.
        base_model: the repository that the weights were made from; default: the one recorded in the model, if it is.
        dry_run: only tell what would be done.
        token: a token, or False for none; default: huggingface_hub's login.

    Raises:
        ArgumentError: no licence, a card of another licence, an invalid ``repo_id``, metrics without their dataset, or
            a model without weights or stem.
        ArgumentTypeError: neither a model nor a path.
        HubError: the Hub refuses, somebody else pushed meanwhile, or the weights are not those of the config.
        InvalidFileError, PathError: the folder or checkpoint is not what it should be, or cannot be read.
        UnknownModelError: no such ``tag``.
        UnsupportedModelError: a model of another kind.
    """
    check_license(license)
    check_repo_id(repo_id)
    if metrics and not (dataset or tag):
        raise ArgumentError("metrics need the dataset they were measured on: give dataset=, for example 'CIFAR-10'")
    target = Target(repo_id, revision, private, create_pr, token)
    with scratch_folder(Path(tempfile.gettempdir()), "convstem-push-") as folder:
        stage(model_or_dir, folder, use_ema, arch)
        require(verify_folder(folder, "what is to be pushed"), skip=("license",))
        finish(folder, license)
        more = {"metrics": dict(metrics or {}), "dataset": dataset, "base_model": base_model}
        write_card(folder, repo_id, license, tag, card, more)
        return push_folder(folder, target, dry_run)


def write_card(
    folder: Path, repo_id: str, license: str, tag: str | None, card: str | Path | None, more: Mapping[str, Any]
) -> None:
    """Write README.md: the given card, else the folder's own, else a generated one; its licence must be ``license``.

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
        text = located(path.read_text(encoding="utf-8"), repo_id)
    else:
        text = render(_facts(folder, repo_id, license, tag, more))
    named = license_of_card(text)
    if named != license:
        raise ArgumentError(f"the card says license: {named}, and license={license!r} was given; make them agree")
    path.write_text(text, encoding="utf-8")


def _text(card: str | Path) -> str:
    if isinstance(card, str) and not card.endswith(".md"):
        return card
    with path_errors("read", card):
        return Path(card).read_text(encoding="utf-8")


def _facts(folder: Path, repo_id: str, license: str, tag: str | None, more: Mapping[str, Any]) -> CardFacts:
    known: dict[str, Any] = {}
    if tag is not None:
        facts = facts_of_entry(find_weights(tag))
        known = {k: getattr(facts, k) for k in ("dataset", "description", "metrics", "metrics_source", "recipe")}
    return facts_of_config(
        read_json(folder / CONFIG), repo_id, license, **{**known, **{k: v for k, v in more.items() if v}}
    )


def stage(source: Any, folder: Path, use_ema: bool = False, arch: str | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a model into a folder; a README.md that is there comes along.

    Args:
        source: one of our models (timm or torchvision), a folder with the two files, or a checkpoint of timm's
            train.py.
        folder: where to write.
        use_ema: of a checkpoint, take the averaged weights.
        arch: of a checkpoint, its architecture, where what the checkpoint names cannot be found any more.

    Raises:
        ArgumentError: a model without weights or conv stem, or a checkpoint whose architecture cannot be found.
        ArgumentTypeError: something else was given.
        InvalidFileError: a checkpoint of another kind, or one that cannot be opened safely.
        MissingPathError: no such file, or a folder that lacks one of the two.
        UnsupportedModelError: a model or checkpoint of another architecture.
    """
    from torch import nn

    if isinstance(source, nn.Module):
        return save(as_timm_model(source), folder)
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentTypeError(f"a model, a folder or a checkpoint file is pushed; got {type(source).__name__}")
    found = source_of("push", source)
    if found.kind == "folder":
        with path_errors("read", found.path):
            return _copy(found.path, folder)
    if found.path.suffix not in CHECKPOINTS:
        raise InvalidFileError(
            f"{found.path.name} is not a checkpoint of timm's train.py ({', '.join(CHECKPOINTS)}); `convstem convert "
            f"{found.path} --out FOLDER` makes a folder that can be pushed"
        )
    return save_checkpoint(found.path, folder, use_ema, arch)


def _copy(source: Path, folder: Path) -> None:
    missing = [name for name in (CONFIG, WEIGHTS) if not (source / name).is_file()]
    if missing:
        raise MissingPathError(f"{source} has no {' and no '.join(missing)}; a pushed folder needs both files")
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def save_checkpoint(path: Path, folder: Path, use_ema: bool, arch: str | None = None) -> None:
    """Write the model of a checkpoint of timm's train.py, with the preprocessing it was trained with."""
    import timm

    checkpoint = open_checkpoint(path)
    key = "state_dict_ema" if use_ema else "state_dict"
    if key not in checkpoint:
        has = ", ".join(sorted(k for k in checkpoint if k.startswith("state_dict"))) or "none"
        raise InvalidFileError(f"{path.name} has no {key}; the weights it has: {has}")
    state = timm.models.clean_state_dict(checkpoint[key])
    args = vars(checkpoint["args"]) if "args" in checkpoint else {}
    named = str(checkpoint.get("arch"))
    name, saved = resolve_architecture(arch or named)
    kwargs = {**saved, **(args.get("model_kwargs") or {})}
    kwargs["num_classes"] = state["head.weight"].shape[0] if "head.weight" in state else 0
    wanted = {"in_chans": args.get("in_chans"), "global_pool": args.get("gp")}
    kwargs |= {key: value for key, value in wanted.items() if value is not None and key not in kwargs}
    architecture = name if ":" not in name else ""
    kwargs.setdefault("img_size", _image_size(architecture, state, kwargs))
    model = timm.create_model(name, **kwargs)
    model.load_state_dict(state)
    record(model, history(named, args))
    save(model, folder, timm.data.resolve_data_config(args, model=model) if args else None)


def _image_size(architecture: str, state: Mapping[str, Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return the image size that a learned position embedding was made for, if it is not the architecture's."""
    spec = catalog.models().get(architecture)
    if spec is None or "pos_embed" not in state or kwargs.get("class_token") is False:
        return None
    size = math.isqrt(state["pos_embed"].shape[1] - 1) * (kwargs.get("stride") or spec.patch_size)
    return None if size == spec.img_size else size


def resolve_architecture(arch: str) -> tuple[str, dict[str, Any]]:
    """Return what ``timm.create_model`` builds for a checkpoint's architecture, without weights, and its arguments.

    Args:
        arch: timm name with or without tag, ``hf-hub:org/name`` or ``local-dir:folder``: what ``--model`` was.

    Raises:
        ArgumentError: the repository or folder cannot be read; the message names the way out.
        UnsupportedModelError: another architecture.
    """
    kind, _, place = arch.partition(":")
    if not place:
        name = arch.partition(".")[0]
        check_ours(name)
        return name, {}
    try:
        folder = _config_folder(kind, place)
        config = read_config(folder / CONFIG)
    except ConvStemError as error:
        raise ArgumentError(
            f"the checkpoint was trained from {arch}, which cannot be read now ({error}); name its architecture with "
            "arch=NAME (--arch NAME on the command line), or another place of the same model"
        ) from error
    return f"local-dir:{folder}", dict(config.get("model_args") or {})


def _config_folder(kind: str, place: str) -> Path:
    if kind == "local-dir":
        return Path(place)
    repository, revision = split_revision(place)
    return fetch(repository, CONFIG, revision).path.parent


def history(arch: str, args: Mapping[str, Any]) -> list[Step]:
    """Return the steps of a checkpoint's life that are known: what was loaded first, and that it was trained.

    Args:
        arch: what ``--model`` was.
        args: the arguments of train.py; empty where the checkpoint has none.
    """
    if not args or any(args.get(name) for name in _OTHER_STARTS):
        return []
    if not args.get("pretrained"):
        return [Step(SCRATCH)]
    kind, _, place = arch.partition(":")
    if place:
        return [*_earlier(kind, place), Step(TUNED, place if kind != "local-dir" else "")]
    return _from_tag(arch)


def _earlier(kind: str, place: str) -> tuple[Step, ...]:
    try:
        return steps(read_config(_config_folder(kind, place) / CONFIG)["pretrained_cfg"])
    except ConvStemError:
        return ()


def _from_tag(arch: str) -> list[Step]:
    import timm

    cfg = timm.get_pretrained_cfg(arch)
    entry = catalog.weights().get(f"{arch.partition('.')[0]}.{cfg.tag}") if cfg else None
    if cfg is None or not (cfg.hf_hub_id or entry):
        return []
    if cfg.hf_hub_id and (entry is None or entry.transform == "transplant"):
        return [Step(TRANSPLANTED, cfg.hf_hub_id), Step(TUNED, arch)]
    return [Step(TUNED, cfg.hf_hub_id or arch)]
