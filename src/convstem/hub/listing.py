"""What a repository holds at one commit, with hashes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convstem.errors import MissingFileError
from convstem.hub.failures import ATTEMPTS, retried
from convstem.hub.repo_cache import DIGEST
from convstem.hub.source import PICKLES

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling


@dataclass(frozen=True)
class Listed:
    """What is known about a file before it is fetched."""

    size: int | None = None
    """Bytes."""
    digest: str = ""
    """The content's hash: sha256 of a large file, git's of a small one; empty where nobody tells it."""


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    commit: str
    files: Mapping[str, Listed]

    def digest(self, filename: str) -> str:
        """Return the content's hash; empty where nobody tells it."""
        return self.files[filename].digest


def list_files(
    repo_id: str,
    revision: str | None = None,
    wanted: Iterable[str] = (),
    *,
    token: Any = None,
    attempts: int = ATTEMPTS,
) -> Listing:
    """Return the commit of a revision and what it holds, with hashes, in one request.

    Args:
        repo_id: ``org/name``.
        revision: branch, tag or commit; default: main.
        wanted: files whose hashes are needed: where a mirror's listing lacks them, the files' own headers are asked.
        token: a token, or False for none; default: huggingface_hub's login.
        attempts: how often a request is made until one succeeds.

    Raises:
        HubError: the repository cannot be read.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(library_name="convstem", token=token)

    def ask() -> Listing:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=timeout)
        if info.gated:  # its listing is public, its files are not
            api.auth_check(repo_id)
        return Listing(str(info.sha), {entry.rfilename: _listed(entry) for entry in info.siblings or ()})

    listing = retried(ask, repo_id, revision, token, attempts)
    lacking = [name for name in wanted if name in listing.files and not listing.digest(name)]
    told = {name: _from_headers(repo_id, listing.commit, name, token, attempts) for name in lacking}
    return replace(listing, files={**listing.files, **told})


def _listed(entry: RepoSibling) -> Listed:
    return Listed(entry.size, str(entry.lfs.sha256 if entry.lfs else entry.blob_id or ""))


def _from_headers(repo_id: str, commit: str, name: str, token: Any, attempts: int) -> Listed:
    """Return what the file's own headers tell: the ETag is the hash, where it looks like one."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo_id, name, revision=commit)
    found = retried(lambda: get_hf_file_metadata(url, token=token), repo_id, commit, token, attempts)
    return Listed(found.size, found.etag if found.etag and DIGEST.fullmatch(found.etag) else "")


def check_present(repo_id: str, listing: Listing, filename: str) -> None:
    """Raise ``MissingFileError`` if a commit lacks a file, naming the way out where there are only pickles."""
    if filename in listing.files:
        return
    pickles = sorted(name for name in listing.files if name.endswith(PICKLES))
    if filename.endswith(".safetensors") and pickles:
        raise MissingFileError(
            f"{repo_id} has no {filename}, only pickled weights ({', '.join(pickles)}), which can run any code when "
            f"opened. If you trust them, download {pickles[0]} yourself and run `convstem convert "
            f"{pickles[0]} --out FOLDER`"
        )
    raise MissingFileError(
        f"{repo_id} has no {filename} at commit {listing.commit[:12]}; it has {', '.join(sorted(listing.files)) or '-'}"
    )
