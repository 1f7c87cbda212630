"""Downloads one file until its content is what the Hub lists: first as the client does, then in resumable pieces."""

from __future__ import annotations

import itertools
import shutil
from typing import Any

from convstem.errors import HubError
from convstem.hub.cache import RepoCache, file_digest
from convstem.hub.errors import explain, is_server_error, web_page
from convstem.hub.listing import Listing, retried
from convstem.hub.names import CARD, CONFIG
from convstem.hub.pieces import download_pieces

LARGEST_TEXT = 16 << 20
"""Bytes that a config or a card may have."""


def download(cache: RepoCache, listing: Listing, name: str, token: Any) -> None:
    """Download a file into the cache; content that is wrong is fetched once more.

    Raises:
        HubError: it cannot be had, it is wrong twice, or it is larger than the disk.
    """
    digest, size = listing.digest(name), listing.files[name].size or 0
    _check_size(cache, name, size)
    cache.discard(listing.commit, name)
    if not digest:  # nothing to compare with: what the client itself accepts
        retried(lambda: _ask_client(cache, listing, name, token), cache.repo_id, listing.commit, token)
        return
    first = [] if cache.partial_download(digest).exists() else [_by_client]
    ways = itertools.chain(first, itertools.repeat(_by_pieces))
    actual: str | None = None
    for _ in range(2):
        actual = retried(lambda: next(ways)(cache, listing, name, token), cache.repo_id, listing.commit, token)
        if cache.verified(listing.commit, name, digest):
            cache.sweep(digest)
            return
    raise HubError(_mismatch_sentence(cache.repo_id, name, digest, actual))


def _by_client(cache: RepoCache, listing: Listing, name: str, token: Any) -> str | None:
    """Download with huggingface_hub's own function and return the content's hash; wrong content is removed."""
    _ask_client(cache, listing, name, token)
    right = cache.verified(listing.commit, name, listing.digest(name))
    return right or cache.discard(listing.commit, name)


def _ask_client(cache: RepoCache, listing: Listing, name: str, token: Any) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(
        cache.repo_id,
        name,
        revision=listing.commit,
        cache_dir=cache.cache_dir,
        token=token,
        library_name="convstem",
    )


def _by_pieces(cache: RepoCache, listing: Listing, name: str, token: Any) -> str | None:
    """Download in pieces and return the content's hash; only right content gets into the cache."""
    digest = listing.digest(name)
    partial = cache.partial_download(digest)
    try:
        download_pieces(cache.repo_id, listing.commit, name, listing.files[name].size or 0, partial, token)
    except Exception as error:
        if is_server_error(error):  # huggingface_hub itself has tried for half a minute
            raise explain(error, cache.repo_id, listing.commit, token) from error
        raise
    actual = file_digest(partial, len(digest))
    if actual == digest:
        cache.adopt(partial, digest, listing.commit, name)
    else:
        partial.unlink()
    return actual


def _check_size(cache: RepoCache, name: str, size: int) -> None:
    if name in (CARD, CONFIG) and size > LARGEST_TEXT:
        raise HubError(f"{name} of {cache.repo_id} is {size:,} bytes; at most {LARGEST_TEXT:,} are read")
    folder = next(parent for parent in (cache.cache_dir, *cache.cache_dir.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise HubError(f"{name} of {cache.repo_id} is {size:,} bytes, and the cache's disk has {free:,} free")


def _mismatch_sentence(repo_id: str, name: str, expected: str, actual: str | None) -> str:
    return (
        f"{name} of {repo_id} is damaged, twice: expected hash {expected}, got {actual}; nothing was kept. Report it "
        f"at {web_page(repo_id, 'discussions')}, unless another network gives the right content"
    )
