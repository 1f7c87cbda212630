"""Publishes the registry's weights with cards to an organisation on the Hub. Interrupted runs can be resumed."""

from __future__ import annotations

import fnmatch
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convstem.errors import (
    AccessDeniedError,
    ArgumentError,
    ConvStemError,
    InvalidFileError,
    RevisionMissingError,
    UnreachableError,
)
from convstem.files.staging import scratch_folder
from convstem.hub.config import read_json
from convstem.hub.read import fetch
from convstem.hub.repo_cache import list_files
from convstem.hub.source import CONFIG, FILES
from convstem.publishing.card import render, write_evaluation
from convstem.publishing.card_facts import facts_of_entry
from convstem.publishing.commit import Target, push_folder
from convstem.publishing.derived import measure_error
from convstem.publishing.folder import finish, save, save_embedded
from convstem.publishing.verify import require, verify_folder
from convstem.registry import catalog
from convstem.registry.licenses import refusal
from convstem.registry.records import WeightsSpec
from convstem.stem.carry import ALGORITHM

PROVENANCE = "convstem"
"""Key in ``config.json`` for the origin of published weights; a later run skips weights of the same origin."""


@dataclass(frozen=True)
class Publication:
    """One weights entry and its action."""

    name: str
    repo_id: str
    action: str
    """``publish``, ``refuse`` or ``skip`` in a plan; ``published``, ``same`` or ``failed`` afterwards."""
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return asdict(self)


def publish(
    namespace: str,
    only: str = "*",
    *,
    dry_run: bool = False,
    private: bool = False,
    token: str | bool | None = None,
    report: Callable[[Publication], object] = lambda row: None,
) -> list[Publication]:
    """Publish the registry's weights, each to ``namespace/architecture.tag``; existing ones are skipped.

    One failure does not stop the others, and the next run resumes an interrupted one.

    Args:
        namespace: organisation or user on the Hub.
        only: shell-style pattern of ``architecture.tag``.
        dry_run: only return the plan.
        private: create repositories private.
        token: a token, or False for none; default: huggingface_hub's login.
        report: called with every row of the plan, then with every result.

    Raises:
        HubError: the Hub cannot be reached to make the plan; no error in a dry run.
        ArgumentError: no weights match ``only``.
    """
    rows = list(plan(namespace, only, token, offline=dry_run))
    for row in rows:
        report(row)
    if dry_run:
        return rows
    return [_carry_out(row, private, token, report) for row in rows]


def plan(
    namespace: str, only: str = "*", token: str | bool | None = None, offline: bool = False
) -> Iterator[Publication]:
    """Yield the action for every matching weights entry, without doing it.

    Args and errors: see ``publish``. With ``offline``, a Hub that does not answer is no error.
    """
    entries = [entry for entry in catalog.weights().values() if fnmatch.fnmatch(entry.name, only)]
    if not entries:
        raise ArgumentError(f"no weights match {only!r}; `convstem list --pretrained` prints all")
    for entry in entries:
        repo_id = f"{namespace}/{entry.name}"
        why_not = refusal(entry.license)
        if why_not:
            yield Publication(entry.name, repo_id, "refuse", why_not)
            continue
        detail = f"{entry.hf_hub_id or entry.file}, {entry.license}"
        try:
            same = _published(repo_id, token) == provenance(entry, repo_id)
        except UnreachableError:
            if not offline:
                raise
            same, detail = False, f"{detail}; the Hub did not answer, so its content is unknown"
        if same:
            yield Publication(entry.name, repo_id, "skip", "the Hub already has it")
        else:
            yield Publication(entry.name, repo_id, "publish", detail)


def provenance(entry: WeightsSpec, repo_id: str) -> dict[str, Any]:
    """Return what determines the published files: source, transform, and the card without its measured error."""
    card = hashlib.sha256(render(facts_of_entry(entry, repo_id)).encode()).hexdigest()
    return {
        "entry": entry.name,
        "source": entry.hf_hub_id or entry.sha256,
        "transform": entry.transform,
        "algorithm": ALGORITHM if entry.transform != "none" else None,  # republish after the transplant improves
        "card": card[:16],
    }


def _published(repo_id: str, token: Any) -> dict[str, Any]:
    """Return a repository's recorded provenance; empty if the repository is absent, incomplete or damaged."""
    try:
        listing = list_files(repo_id, token=token)
    except (AccessDeniedError, RevisionMissingError):
        return {}
    if not {*FILES} <= set(listing.files):
        return {}
    try:
        found = read_json(fetch(repo_id, CONFIG, listing.commit, token=token).path).get(PROVENANCE)
    except InvalidFileError:
        return {}
    return found if isinstance(found, dict) else {}


def _carry_out(row: Publication, private: bool, token: Any, report: Callable[[Publication], object]) -> Publication:
    done = row
    if row.action == "publish":
        try:
            with scratch_folder(Path(tempfile.gettempdir()), "convstem-publish-") as folder:
                _stage(catalog.weights()[row.name], row.repo_id, folder, token)
                require(verify_folder(folder, row.name))
                result = push_folder(folder, Target(row.repo_id, private=private, token=token))
            action = "published" if result.changed else "same"
            done = Publication(row.name, row.repo_id, action, str(result.commit))
        except Exception as error:  # report any failure (also safetensors' own, on a full disk) and go on
            words = str(error) if isinstance(error, ConvStemError) else f"{type(error).__name__}: {error}"
            done = Publication(row.name, row.repo_id, "failed", words)
        report(done)
    return done


def _stage(entry: WeightsSpec, repo_id: str, folder: Path, token: Any) -> None:
    error = None
    if entry.file:
        save_embedded(entry, folder)
    else:
        error = _stage_transplant(entry, folder, token)
    facts = facts_of_entry(entry, repo_id, error)
    card = render(facts)
    write_evaluation(facts, folder)
    finish(folder, entry.license, lambda config: card, **{PROVENANCE: provenance(entry, repo_id)})


def _stage_transplant(entry: WeightsSpec, folder: Path, token: Any) -> float:
    """Write a transplanted model and return its measured error against its source."""
    import timm
    import torch

    dtype = torch.get_default_dtype()
    if dtype != torch.float32:
        raise ArgumentError(
            f"weights are published as they are loaded, and torch's default type is {dtype}: set it to torch.float32"
        )
    repository, revision = entry.hub_name
    file = fetch(repository, revision=revision, token=token).path
    overlay = {"file": str(file)}
    with torch.device("cpu"):
        source = timm.create_model(repository.removeprefix("timm/"), pretrained=True, pretrained_cfg_overlay=overlay)
        model = timm.create_model(entry.name, pretrained=True, pretrained_cfg_overlay=overlay)
        save(model, folder)
        return measure_error(source.eval(), model.eval())
