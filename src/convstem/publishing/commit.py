"""Commits a staged folder in one atomic, idempotent, verified step. A conflict or a lost reply loses nothing."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convstem.errors import AccessDeniedError, HubError, RevisionMissingError, UnreachableError
from convstem.hub.config import read_json
from convstem.hub.failures import (
    ATTEMPTS,
    WAIT_SECONDS,
    explain,
    is_transient,
    retried,
    status_of,
    web_page,
    without_password,
)
from convstem.hub.repo_cache import Listing, file_digest, list_files
from convstem.hub.source import CONFIG, EVALUATION, FILES

STALE = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""Pickled copies of the weights, left by earlier pushes with other tools."""


CONFLICT = (409, 412)
"""HTTP statuses for a commit whose parent is no longer the newest commit."""


@dataclass(frozen=True)
class PushResult:
    """What a push did, or would do."""

    repo_id: str
    commit: str | None
    """The commit that has the files; None for a dry run that would make one."""
    url: str | None
    files: Mapping[str, str]
    """File -> ``add``, ``update``, ``same`` or ``remove``; ``send`` if the Hub did not answer."""
    changed: bool
    """Whether there was anything to send."""
    pr_url: str | None = None
    note: str = ""
    """For a dry run: why the files were not compared with the Hub's; else empty."""

    def to_json(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """Where to push: a repository's branch, or a new pull request on it."""

    repo_id: str
    revision: str | None = None
    private: bool = False
    create_pr: bool = False
    token: str | bool | None = field(default=None, repr=False)

    @property
    def api(self) -> Any:
        """The Hub client."""
        from huggingface_hub import HfApi

        return HfApi(library_name="convstem", token=self.token)

    def listing(self, revision: str | None = None) -> Listing:
        """Return the files of the branch, or of another revision."""
        return list_files(self.repo_id, revision or self.revision, (*FILES, EVALUATION), token=self.token)


def push_folder(folder: Path, target: Target, dry_run: bool = False) -> PushResult:
    """Commit a staged folder, unless the repository already has the same content.

    Args:
        folder: has the ``FILES``.
        target: where to push.
        dry_run: only report what would be done.

    Raises:
        HubError: the Hub refuses, does not answer (no error in a dry run) or holds other content afterwards, or
            somebody else pushed meanwhile.
    """
    try:
        remote = _current(target)
    except UnreachableError as error:
        if not dry_run:
            raise
        names = [name for name in (*FILES, EVALUATION) if (folder / name).is_file()]
        note = f"not compared with the Hub: {error}"
        return PushResult(target.repo_id, None, None, dict.fromkeys(names, "send"), changed=True, note=note)
    if remote is not None and not target.create_pr and _is_done(folder, remote):
        return _result(target, folder, remote, remote.commit, changed=False)
    if remote is not None and target.create_pr and (proposed := _open_pull_request(folder, target)):
        return proposed
    if dry_run:
        return PushResult(target.repo_id, None, None, file_actions(folder, remote), changed=True)
    return _commit(folder, target, remote or _create(target))


def file_actions(folder: Path, remote: Listing | None) -> dict[str, str]:
    """Return file -> what a commit does to it."""
    files = remote.files if remote else {}
    names = [*FILES, *([EVALUATION] if (folder / EVALUATION).is_file() else [])]
    actions = {name: _action(folder, name, remote) for name in names}
    stale = sorted(name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in STALE))
    return {**actions, **dict.fromkeys(stale, "remove")}


def _action(folder: Path, name: str, remote: Listing | None) -> str:
    if remote is None or name not in remote.files:
        return "add"
    digest = remote.digest(name)
    return "same" if digest and file_digest(folder / name, len(digest)) == digest else "update"


def _is_done(folder: Path, remote: Listing) -> bool:
    return set(file_actions(folder, remote).values()) == {"same"}


def _current(target: Target) -> Listing | None:
    """Return the branch's files; None if the repository or branch does not exist yet."""
    try:
        return target.listing()
    except RevisionMissingError:
        return None
    except AccessDeniedError:
        return None  # it may not exist; otherwise creating it raises with the reason


def _create(target: Target) -> Listing:
    """Create the missing repository or branch, and return the branch's files."""

    def ask() -> None:
        target.api.create_repo(target.repo_id, private=target.private or None, exist_ok=True)
        if target.revision and not target.revision.startswith("refs/"):
            target.api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)

    try:
        retried(ask, target.repo_id, None, target.token)
    except AccessDeniedError as error:
        raise AccessDeniedError(f"{error}. Pushing needs a token that may write to {target.repo_id}") from error
    return target.listing()


def _commit(folder: Path, target: Target, remote: Listing) -> PushResult:
    parent, architecture = remote.commit, read_json(folder / CONFIG)["architecture"]
    for attempt in range(ATTEMPTS):
        operations = _operations(folder, remote)  # new for each try: huggingface_hub refuses used ones
        try:
            info = target.api.create_commit(
                target.repo_id,
                operations,
                commit_message=f"Push {architecture} with convstem",
                revision=target.revision,
                parent_commit=parent,
                create_pr=target.create_pr,
            )
        except Exception as error:
            done = _after_failure(folder, target, parent, error)
            if done is not None:
                return done
            if attempt + 1 == ATTEMPTS or not (is_transient(error) or _upload_failed(error, attempt)):
                raise explain(error, target.repo_id, target.revision, target.token) from error
            time.sleep(WAIT_SECONDS * 2**attempt)
        else:
            return _verified(folder, target, info.oid, remote, info.pr_url and without_password(info.pr_url))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _operations(folder: Path, remote: Listing) -> list[Any]:
    """Return the additions and deletions as huggingface_hub's operations."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    actions = file_actions(folder, remote)
    removed = [CommitOperationDelete(name) for name, action in actions.items() if action == "remove"]
    sent = [
        CommitOperationAdd(name, str(folder / name)) for name, action in actions.items() if action in ("add", "update")
    ]
    return [*sent, *removed]


def _upload_failed(error: Exception, attempt: int) -> bool:
    """Return whether bytes were lost or damaged during the upload, so that sending them again may help."""
    cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error  # "Error while uploading"
    response: Any = getattr(cause, "response", None)
    if response is None:
        return isinstance(cause, ValueError) and "etag" in str(cause)  # an uploaded part without an ETag
    # A 400 from the API may be about the card, which retrying cannot fix, so retry that once only.
    return response.status_code == 400 and ("/api/" not in str(response.request.url) or attempt == 0)


def _after_failure(folder: Path, target: Target, parent: str, error: Exception) -> PushResult | None:
    """Return the result if the commit was made but its reply was lost. Raise if somebody else pushed first."""
    if status_of(error) not in CONFLICT and not is_transient(error):
        return None
    if target.create_pr:
        return _open_pull_request(folder, target, changed=True)
    now = target.listing()
    if now.commit == parent:
        return None
    if _is_done(folder, now):
        return _result(target, folder, now, now.commit, changed=True)
    raise HubError(
        f"{target.repo_id} changed while this push was under way: expected commit {parent}, found {now.commit}. "
        "Nothing was changed and nothing is lost; look at that commit, then push again to put yours on top"
    ) from error


def _open_pull_request(folder: Path, target: Target, changed: bool = False) -> PushResult | None:
    """Return the open pull request with exactly this content, or None."""

    def ask() -> list[int]:
        found = target.api.get_repo_discussions(
            target.repo_id, discussion_type="pull_request", discussion_status="open"
        )
        return [discussion.num for discussion in found]

    for number in retried(ask, target.repo_id, None, target.token):
        proposed = target.listing(f"refs/pr/{number}")
        if _is_done(folder, proposed):
            page = web_page(target.repo_id, "discussions", str(number))
            return _result(target, folder, proposed, proposed.commit, changed, page)
    return None


def _verified(folder: Path, target: Target, commit: str, before: Listing, pr_url: str | None) -> PushResult:
    """Compare the Hub's hashes for the new commit with the files, and return the result."""
    listing = target.listing(commit)
    held = listing.files
    actions = file_actions(folder, listing).items()
    wrong = [name for name, action in actions if action != "same" and (name not in held or held[name].digest)]
    if wrong:
        raise HubError(
            f"commit {commit} of {target.repo_id} does not hold what was sent: {', '.join(wrong)} differ. Report it to "
            "the Hub's operators; the commit before it is untouched"
        )
    return _result(target, folder, before, commit, True, pr_url)


def _result(
    target: Target, folder: Path, before: Listing, commit: str, changed: bool, pr_url: str | None = None
) -> PushResult:
    return PushResult(
        target.repo_id,
        commit,
        web_page(target.repo_id, "commit", commit),
        file_actions(folder, before),
        changed,
        pr_url,
    )
