"""Verified reading from the Hub: one commit per call, contents compared with the Hub's hashes before first use.

All requests are huggingface_hub's own, so its login, proxies, HF_ENDPOINT, HF_HUB_OFFLINE and cache settings apply.
"""

from __future__ import annotations

import itertools
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from convstem.hub_cache import RepoCache, is_commit
from convstem.hub_errors import (
    AccessDeniedError,
    HubError,
    UnreachableError,
    explain,
    is_server_error,
    is_transient,
    retry_after,
    root_cause,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".pth.tar")
"""Suffixes of files that run code when they are opened; never read from the Hub."""

ATTEMPTS = 4
WAIT_SECONDS = 0.5
"""Before the second try; doubled before each further one."""

LARGEST_TEXT = 16 << 20
"""Bytes that a config or a card may have."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class HubFile:
    """A verified file of a Hub repository."""

    path: Path
    """The file in huggingface_hub's cache."""
    repo_id: str
    commit: str
    """The commit the file belongs to: 40 hexadecimal digits."""
    sha256: str | None
    """Hash of the content, verified; None for small files that the Hub keeps in git (git's hash verifies them), and
    offline for files that another client stored without their hash."""


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    commit: str
    files: Mapping[str, RepoSibling]

    def digest(self, filename: str) -> str:
        """Return the content's hash on the Hub: sha256 of a large file, git's of a small one."""
        entry = self.files[filename]
        return str(entry.lfs.sha256 if entry.lfs else entry.blob_id)


def fetch(
    repo_id: str,
    filename: str = WEIGHTS,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> HubFile:
    """Return one file of a Hub repository, downloaded if needed, and verified.

    Args:
        repo_id: ``org/name``.
        filename: a ``.safetensors`` file, ``config.json`` or ``README.md``.
        revision: branch, tag or commit; a commit that is in the cache needs no network.
        cache_dir: another Hub cache.
        token: a token, or False for none; default: huggingface_hub's login.

    Raises:
        HubError: the file cannot be had, or its content is not what the Hub lists.
        ValueError: an invalid ``repo_id``, or a file that is never read from the Hub.
    """
    return fetch_all(repo_id, [filename], revision, cache_dir=cache_dir, token=token)[filename]


def fetch_all(
    repo_id: str,
    filenames: Iterable[str],
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> dict[str, HubFile]:
    """Return several files of a Hub repository, all from one commit. Arguments and errors: see ``fetch``."""
    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    names = list(filenames)
    for name in names:
        check_filename(name)
    validate_repo_id(repo_id)
    cache = RepoCache(repo_id, Path(cache_dir or constants.HF_HUB_CACHE).expanduser())
    offline = constants.is_offline_mode()
    if offline or is_commit(revision):
        files = _cached(cache, revision, names, unknown=offline)
        if files:
            return files
    if offline:
        raise HubError(_offline_sentence(cache, revision, names))
    return _fetch_online(cache, names, revision, token)


def cached_commit(repo_id: str, revision: str | None = None, cache_dir: str | Path | None = None) -> str | None:
    """Return the commit from which the cache has ``config.json`` at this revision, or None.

    timm downloads the config before it calls an entrypoint: the weights have to come from the same commit.
    """
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo_id, CONFIG, cache_dir=cache_dir, revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


def list_files(repo_id: str, revision: str | None = None, *, token: Any = None, attempts: int = ATTEMPTS) -> Listing:
    """Return the commit of a revision and what it holds, with hashes, in one request.

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
        return Listing(str(info.sha), {entry.rfilename: entry for entry in info.siblings or ()})

    return retried(ask, repo_id, revision, token, attempts)


def retried(
    ask: Callable[[], Result], repo_id: str, revision: str | None, token: Any, attempts: int = ATTEMPTS
) -> Result:
    """Return what ``ask`` returns, trying again with growing pauses while the failure may pass.

    Raises:
        HubError: a failure that will not pass, or as many failures as ``attempts``.
    """
    for attempt in range(attempts):
        try:
            return ask()
        except HubError:
            raise
        except Exception as error:
            cause = root_cause(error)
            if attempt + 1 == attempts or not is_transient(cause):
                raise explain(cause, repo_id, revision, token) from error
            time.sleep(retry_after(cause, WAIT_SECONDS * 2**attempt))
    raise AssertionError("attempts must be positive")


def check_filename(filename: str) -> None:
    """Raise ``ValueError`` unless this is a plain path of a file that is safe to read from the Hub."""
    path = PurePosixPath(filename)
    plain = filename == str(path) and not path.is_absolute() and ".." not in path.parts and "\\" not in filename
    if not plain or (path.suffix != ".safetensors" and filename not in (CARD, CONFIG)):
        raise ValueError(
            f"from the Hub only {CARD}, {CONFIG} and *.safetensors are read, by a plain relative path; got {filename!r}"
        )


def check_present(repo_id: str, listing: Listing, filename: str) -> None:
    """Raise ``HubError`` if a commit lacks a file, naming the way out for a repository that has only pickles."""
    if filename in listing.files:
        return
    pickles = sorted(name for name in listing.files if name.endswith(PICKLES))
    if filename.endswith(".safetensors") and pickles:
        raise HubError(
            f"{repo_id} has no {filename}, only pickled weights ({', '.join(pickles)}), which can run any code when "
            f"opened. If you trust them, download {pickles[0]} yourself and run `convstem convert {pickles[0]}`"
        )
    raise HubError(
        f"{repo_id} has no {filename} at commit {listing.commit[:12]}; it has {', '.join(sorted(listing.files)) or '-'}"
    )


def _fetch_online(cache: RepoCache, names: list[str], revision: str | None, token: Any) -> dict[str, HubFile]:
    warm = _cached(cache, revision, names, unknown=True)
    try:
        listing = list_files(cache.repo_id, revision, token=token, attempts=2 if warm else ATTEMPTS)
    except (AccessDeniedError, UnreachableError) as error:
        if not warm:
            raise
        commit = next(iter(warm.values())).commit
        warnings.warn(f"{error}. Using the copy in the cache, commit {commit[:12]}", stacklevel=4)
        return warm
    for name in names:
        check_present(cache.repo_id, listing, name)
    files = {name: _ensure(cache, listing, name, token) for name in names}
    cache.remember_ref(revision, listing.commit)  # last: offline, a ref must lead to complete files
    return files


def _cached(cache: RepoCache, revision: str | None, names: list[str], unknown: bool) -> dict[str, HubFile]:
    """Return the files from the cache if all are there and verified, or of unknown hash where allowed; else nothing."""
    commit = cache.commit_of(revision)
    digests = {name: cache.verified(commit, name) for name in names} if commit else {}
    if not commit or None in digests.values() or ("" in digests.values() and not unknown):
        return {}
    return {name: _hub_file(cache, commit, name, str(digest)) for name, digest in digests.items()}


def _hub_file(cache: RepoCache, commit: str, name: str, digest: str) -> HubFile:
    return HubFile(cache.pointer(commit, name), cache.repo_id, commit, digest if len(digest) == 64 else None)


def _ensure(cache: RepoCache, listing: Listing, name: str, token: Any) -> HubFile:
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    digest = listing.digest(name)
    if not cache.verified(listing.commit, name, digest):
        lock = cache.cache_dir / ".locks" / cache.folder.name / f"{digest}.convstem.lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):
                if not cache.verified(listing.commit, name, digest):  # another process may have been faster
                    _download(cache, listing, name, token)
        except HubError:
            raise
        except OSError as error:
            raise explain(error, cache.repo_id, listing.commit, token) from error
    return _hub_file(cache, listing.commit, name, digest)


def _download(cache: RepoCache, listing: Listing, name: str, token: Any) -> None:
    """Download a file until its content is right: first as the client does, then in resumable pieces."""
    from huggingface_hub import hf_hub_download

    digest, size = listing.digest(name), listing.files[name].size or 0
    _check_size(cache, name, size)
    partial = cache.folder / "blobs" / f"{digest}.convstem-incomplete"
    actual = cache.discard(listing.commit, name)
    tries = itertools.count()

    def attempt() -> None:
        if next(tries) == 0 and not partial.exists():
            hf_hub_download(
                cache.repo_id, name, revision=listing.commit, cache_dir=cache.cache_dir, token=token,
                library_name="convstem",
            )  # fmt: skip
        else:
            from convstem.hub_pieces import download_pieces

            try:
                download_pieces(cache.repo_id, listing.commit, name, size, partial, token)
            except Exception as error:
                if is_server_error(error):  # huggingface_hub itself has tried for half a minute
                    raise explain(error, cache.repo_id, listing.commit, token) from error
                raise
            cache.adopt(partial, digest, listing.commit, name)

    for _ in range(2):
        retried(attempt, cache.repo_id, listing.commit, token)
        if cache.verified(listing.commit, name, digest):
            cache.sweep(digest)
            return
        actual = cache.discard(listing.commit, name)
    raise HubError(_mismatch_sentence(cache.repo_id, name, digest, actual))


def _check_size(cache: RepoCache, name: str, size: int) -> None:
    if name in (CARD, CONFIG) and size > LARGEST_TEXT:
        raise HubError(f"{name} of {cache.repo_id} is {size:,} bytes; at most {LARGEST_TEXT:,} are read")
    folder = next(parent for parent in (cache.cache_dir, *cache.cache_dir.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise HubError(f"{name} of {cache.repo_id} is {size:,} bytes, and the cache's disk has {free:,} free")


def _mismatch_sentence(repo_id: str, name: str, expected: str, actual: str | None) -> str:
    from huggingface_hub import constants

    return (
        f"{name} of {repo_id} is damaged, twice: expected hash {expected}, got {actual}; nothing was kept. Report it "
        f"at {constants.ENDPOINT}/{repo_id}/discussions, unless another network gives the right content"
    )


def _offline_sentence(cache: RepoCache, revision: str | None, names: list[str]) -> str:
    commit = cache.commit_of(revision)
    here = [name for name in names if commit and cache.pointer(commit, name).exists()]
    state = f"{', '.join(here)} in the cache is damaged or not all there" if here else "the cache does not have it"
    where = cache.repo_id if revision is None else f"{cache.repo_id}@{revision}"
    return (
        f"the Hub is switched off (HF_HUB_OFFLINE) and {state}: {where}, {', '.join(names)}. Unset HF_HUB_OFFLINE, or "
        f"run `convstem pull {where}` where there is a network"
    )
