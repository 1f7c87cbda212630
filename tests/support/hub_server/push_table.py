"""The faults of a push as a table."""

import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convstem.hub.source import EVALUATION, WEIGHTS
from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.client import Outcome
from tests.support.hub_server.faults import Fault
from tests.support.hub_server.store import Store

NAMESPACE, ENTRY = "writer", "vit_nano4_convstem.cifar10"
REPO = f"{NAMESPACE}/{ENTRY}"
"""The repository to which ``publish`` and the other codes push."""
DONE = "one commit with the right files"


@dataclass(frozen=True)
class PushRow:
    """One fault of the server, and the outcome of ``convstem.push`` (``DONE`` or a pattern of the error)."""

    name: str
    faults: tuple[Fault, ...] = ()
    expected: str = DONE
    create_pr: bool = False
    twice: bool = False
    """Push the same content a second time, whatever the first outcome."""
    stale: bool = False
    """The repository holds pickled weights of an earlier push."""
    chunk: int | None = None
    """Bytes per part of a weights upload; None uploads in one piece."""


COMMIT: dict[str, Any] = {"origin": "hub", "method": "POST", "path": "/commit/"}

PUSH_ROWS = (
    PushRow("nothing (control)"),
    PushRow("the same content again", twice=True),
    PushRow("stale pickle in the repository", stale=True),
    PushRow("commit reply lost", (Fault(**COMMIT, lost_reply=True),)),
    PushRow("commit reply lost, pushed again", (Fault(**COMMIT, lost_reply=True),), twice=True),
    PushRow("commit reply lost, pull request", (Fault(**COMMIT, lost_reply=True),), create_pr=True),
    PushRow(
        "commit reply lost, pull request, pushed again", (Fault(**COMMIT, lost_reply=True),), create_pr=True, twice=True
    ),
    PushRow("commit refused with 503", (Fault(**COMMIT, status=503),)),
    PushRow("upload refused with 503", (Fault(method="PUT", status=503),)),
    PushRow("upload answer lost", (Fault(method="PUT", lost_reply=True),)),
    PushRow("upload damaged on the way", (Fault(method="PUT", flip=1000),)),
    PushRow("one part damaged on the way", (Fault(method="PUT", path="/part/", skip=1, flip=1000),), chunk=1_000_000),
    PushRow("one part lost, receipt sent", (Fault(method="PUT", path="/part/", skip=1, truncate=0),), chunk=1_000_000),
    PushRow(
        "one part without a receipt",
        (Fault(method="PUT", path="/part/", skip=1, hide=("ETag",)),),
        chunk=1_000_000,
    ),
    PushRow("preupload refused with 503", (Fault(origin="hub", method="POST", path="/preupload/", status=503),)),
    PushRow("creating the repository fails once", (Fault(origin="hub", method="POST", path="/create", status=503),)),
)

STOCK_PUSH = """
from huggingface_hub import HfApi
api = HfApi()
api.create_repo({repo!r}, exist_ok=True)
info = api.upload_folder(repo_id={repo!r}, folder_path={folder!r}, create_pr={create_pr})
result = info.oid
"""

CONVSTEM_PUSH = """
import convstem
result = convstem.push({folder!r}, {repo!r}, license="apache-2.0", create_pr={create_pr}).commit
"""

PUBLISH = f"""
import convstem
[row] = convstem.publish({NAMESPACE!r}, only={ENTRY!r})
assert row.action in ("published", "same", "skip"), row.detail
result = row.action
"""


@functools.cache
def model_folder() -> Path:
    """Return a folder with our smallest model, created once."""
    import convstem.publishing.pull

    return convstem.publishing.pull.pull(ENTRY, out=tempfile.mkdtemp(prefix="convstem-test-"))


def run_push_row(hub: HubServer, client: Client, row: PushRow, code: str, cache: str | Path) -> str:
    """Run one row and return its outcome in words."""
    if row.create_pr and code == PUBLISH:
        return "not asked: it makes no pull requests"
    hub.arm()
    hub.store.repos.pop(REPO, None)
    hub.store.contents.clear()
    hub.parts.clear()
    hub.chunk = row.chunk
    folder = Path(cache) / "model"
    shutil.copytree(model_folder(), folder)
    files: dict[str, bytes | None] = {path.name: path.read_bytes() for path in folder.iterdir()}
    if code == PUBLISH:  # it writes its own config, card and metrics
        files = dict.fromkeys((*files, "README.md", EVALUATION), None) | {WEIGHTS: files[WEIGHTS]}
    if row.create_pr or row.stale:
        hub.store.create(REPO)
        hub.store.commit(REPO, "main", {"README.md": b"old", "pytorch_model.bin": b"pickle"}, message="earlier")
    script = code.format(repo=REPO, folder=str(folder), create_pr=row.create_pr)
    hub.arm(*row.faults)
    outcome = client(script)
    if row.twice:
        outcome = client(script)
    return describe(hub.store, row, outcome, files)


def describe(store: Store, row: PushRow, outcome: Outcome, files: dict[str, bytes | None]) -> str:
    """Return an outcome in words, judged by the server's files; None in ``files`` accepts any content."""
    words = f"{outcome.kind}: {' '.join(outcome.error.split())}" if outcome.error else ""
    if REPO not in store.repos:
        return words
    repo = store.repos[REPO]
    revision = f"refs/pr/{len(repo.pulls)}" if row.create_pr else "main"
    before = 1 if row.create_pr or row.stale else 0
    if row.create_pr and not repo.pulls:
        return words or "no pull request"
    held = {name: store.read(REPO, name, revision) for name in store.names(REPO, revision)}
    commits = len(store.history(REPO, revision)) - before
    state = [f"{commits} commits"] if commits != 1 else []
    state += [f"{len(repo.pulls)} pull requests"] if row.create_pr and len(repo.pulls) != 1 else []
    wrong = any(name not in held or content not in (None, held[name]) for name, content in files.items())
    state += ["wrong files"] if wrong else []
    state += [f"stale {name}" for name in sorted(set(held) - set(files))]
    held_now = ", ".join(state) or DONE
    return f"{words} [but: {held_now}]" if words else held_now
