"""Verified reading from the Hub: one commit per call, contents compared with the Hub's hashes before first use.

huggingface_hub makes all requests, so its login, proxies, HF_ENDPOINT, HF_HUB_OFFLINE and cache settings apply.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convstem.errors import AccessDeniedError, MissingFileError, UnreachableError, warn
from convstem.files.paths import held
from convstem.hub.download import download
from convstem.hub.failures import ATTEMPTS, given, retried, web_page
from convstem.hub.repo_cache import Listing, RepoCache, check_present, is_commit, list_files
from convstem.hub.source import CONFIG, WEIGHTS, check_filename, check_repo_id


@dataclass(frozen=True)
class HubFile:
    """A verified file of a Hub repository."""

    path: Path
    """The file in huggingface_hub's cache."""
    repo_id: str
    commit: str
    """The file's commit: 40 hexadecimal digits."""
    sha256: str | None
    """Verified hash of the content. None for small files that the Hub keeps in git (verified by git's hash), and
    offline for files that another client stored without a hash."""
    compared: bool = True
    """Whether the content was compared with a hash; some mirrors give none."""


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
        ArgumentError: an invalid ``repo_id``, or a file that is never read from the Hub.
        HubError: the file cannot be fetched, or its content does not match the Hub's hash.
    """
    return fetch_all(repo_id, [filename], revision, cache_dir=cache_dir, token=token)[filename]


def fetch_all(
    repo_id: str,
    filenames: Iterable[str],
    revision: str | None = None,
    *,
    optional: Iterable[str] = (),
    check: Callable[[HubFile], object] = lambda file: None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> dict[str, HubFile]:
    """Return several files of a Hub repository, all from one commit. Other arguments and errors: see ``fetch``.

    Args:
        repo_id, revision, cache_dir, token: see ``fetch``.
        filenames: files to fetch, in this order.
        optional: further files, fetched if the repository has them.
        check: called with each file before the next download; it may raise to stop.
    """
    from huggingface_hub import constants

    names, welcome = list(filenames), list(optional)
    for name in (*names, *welcome):
        check_filename(name)
    check_repo_id(repo_id)
    cache = RepoCache(repo_id, Path(os.path.expanduser(cache_dir or constants.HF_HUB_CACHE)))
    offline = constants.HF_HUB_OFFLINE
    if offline or is_commit(revision):
        files = _cached(cache, revision, names, unknown=offline)
        more: dict[str, HubFile] = {}
        for name in welcome if files else ():
            more |= _cached(cache, revision, [name], unknown=offline)
        if files and (offline or len(more) == len(welcome)):  # otherwise the Hub may have more optional files
            return _checked({**files, **more}, check)
    if offline:
        raise MissingFileError(_offline_sentence(cache, revision, names))
    return _fetch_online(cache, names, welcome, revision, token, check)


def _checked(files: dict[str, HubFile], check: Callable[[HubFile], object]) -> dict[str, HubFile]:
    given(file.path for file in files.values())
    for file in files.values():
        check(file)
    return files


def cached_config(repo_id: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path | None:
    """Return the cached ``config.json`` of this revision, in its commit's folder, or None.

    timm downloads the config before it calls an entrypoint, and the weights must come from the same commit.
    """
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo_id, CONFIG, cache_dir=cache_dir, revision=revision)
    return Path(path) if isinstance(path, str) else None


_UNCOMPARED: set[tuple[str, str]] = set()
"""(Repository, commit) pairs already warned about for having no hashes."""


def _fetch_online(
    cache: RepoCache,
    names: list[str],
    welcome: list[str],
    revision: str | None,
    token: Any,
    check: Callable[[HubFile], object],
) -> dict[str, HubFile]:
    warm = _cached(cache, revision, names, unknown=True)
    try:
        listing = list_files(cache.repo_id, revision, [*names, *welcome], token=token, attempts=2 if warm else ATTEMPTS)
    except (AccessDeniedError, UnreachableError) as error:
        if not warm:
            raise
        commit = next(iter(warm.values())).commit
        warn(f"{error}. Using the copy in the cache, commit {commit[:12]}")
        return _checked(warm, check)
    files: dict[str, HubFile] = {}
    for name in (*names, *(name for name in welcome if name in listing.files)):
        check_present(cache.repo_id, listing, name)
        files[name] = _ensure(cache, listing, name, token)
        given([files[name].path])
        check(files[name])
    if not all(file.compared for file in files.values()) and (cache.repo_id, listing.commit) not in _UNCOMPARED:
        _UNCOMPARED.add((cache.repo_id, listing.commit))
        warn(_unknown_sentence(cache.repo_id))
    cache.remember_ref(revision, listing.commit)  # last, because offline a ref must lead to complete files
    return files


def _cached(cache: RepoCache, revision: str | None, names: list[str], unknown: bool) -> dict[str, HubFile]:
    """Return the files if the cache has all of them verified (or, with ``unknown``, without a hash); else nothing."""
    commit = cache.commit_of(revision)
    digests = {name: cache.verified(commit, name) for name in names} if commit else {}
    if not commit or None in digests.values() or ("" in digests.values() and not unknown):
        return {}
    return {name: _hub_file(cache, commit, name, str(digest)) for name, digest in digests.items()}


def _hub_file(cache: RepoCache, commit: str, name: str, digest: str) -> HubFile:
    return HubFile(
        cache.pointer(commit, name), cache.repo_id, commit, digest if len(digest) == 64 else None, bool(digest)
    )


def _ensure(cache: RepoCache, listing: Listing, name: str, token: Any) -> HubFile:
    digest = listing.digest(name)
    if cache.verified(listing.commit, name, digest) is None:
        lock = cache.cache_dir / ".locks" / cache.folder.name / f"{digest}.convstem.lock"

        def ensure() -> None:
            lock.parent.mkdir(parents=True, exist_ok=True)
            with held(lock, f"downloads {name} of {cache.repo_id}"):
                if cache.verified(listing.commit, name, digest) is None:  # another process may have been faster
                    download(cache, listing, name, token)

        retried(ensure, cache.repo_id, listing.commit, token)
    return _hub_file(cache, listing.commit, name, digest or cache.verified(listing.commit, name) or "")


def _unknown_sentence(repo_id: str) -> str:
    return (
        f"the files of {repo_id} could not be compared with the Hub: {web_page()} gives no hash in its listing or the "
        "files' headers; only their format and values are checked"
    )


def _offline_sentence(cache: RepoCache, revision: str | None, names: list[str]) -> str:
    commit = cache.commit_of(revision)
    here = [name for name in names if commit and cache.pointer(commit, name).exists()]
    state = f"{', '.join(here)} in the cache is damaged or incomplete" if here else "the cache does not have it"
    where = cache.repo_id if revision is None else f"{cache.repo_id}@{revision}"
    return (
        f"the Hub is switched off (HF_HUB_OFFLINE) and {state}: {where}, {', '.join(names)}. Unset HF_HUB_OFFLINE, or "
        f"run `convstem pull {where}` where there is a network"
    )
