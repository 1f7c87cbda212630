"""What a checkpoint of timm's train.py says about itself: its architecture, and what its training started from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convstem.errors import ArgumentError, ConvStemError
from convstem.hub.config import check_ours, read_config
from convstem.hub.provenance import SCRATCH, TRANSPLANTED, TUNED, Step, steps
from convstem.hub.read import fetch
from convstem.hub.source import CONFIG, split_revision
from convstem.registry import catalog

_OTHER_STARTS = ("initial_checkpoint", "pretrained_path", "resume")
"""Arguments of train.py that name weights on the trainer's machine, about which nothing is known."""


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
