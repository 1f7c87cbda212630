"""Downloads one file and checks it against the Hub's hash: first with the client, then in resumable pieces."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convstem.errors import HubError
from convstem.hub.failures import explain, is_of_xet, is_server_error, retried, web_page
from convstem.hub.repo_cache import Listing, RepoCache, file_digest
from convstem.hub.source import CARD, CONFIG, LARGEST_TEXT

PIECE = 8 << 20
"""Bytes per request."""


def download(cache: RepoCache, listing: Listing, name: str, token: Any) -> None:
    """Download a file into the cache. Wrong content is fetched a second time.

    Raises:
        HubError: the download fails, its content is wrong twice, or it does not fit on the disk.
    """
    digest, size = listing.digest(name), listing.files[name].size or 0
    _check_size(cache, name, size)
    cache.discard(listing.commit, name)
    asked = (cache.repo_id, listing.commit, token)
    if not digest:  # nothing to compare with: trust the client
        plain = itertools.chain([_ask_client], itertools.repeat(_ask_client_plainly))
        retried(lambda: next(plain)(cache, listing, name, token), *asked, listed=True)
        return
    first = [] if cache.partial_download(digest).exists() else [_by_client]
    ways = itertools.chain(first, itertools.repeat(_by_pieces))
    actual = ""
    for _ in range(2):
        actual = retried(lambda: next(ways)(cache, listing, name, token), *asked, listed=True)
        if actual == digest:
            cache.sweep(digest)
            return
    raise HubError(_mismatch_sentence(cache.repo_id, name, digest, actual))


def _by_client(cache: RepoCache, listing: Listing, name: str, token: Any) -> str:
    """Download with ``hf_hub_download`` and return the content's hash; wrong content is removed."""
    _ask_client(cache, listing, name, token)
    digest = listing.digest(name)
    if cache.verified(listing.commit, name, digest):
        return digest
    actual = cache.discard(listing.commit, name)
    if actual is None:
        raise FileNotFoundError(errno.ENOENT, "deleted meanwhile", str(cache.pointer(listing.commit, name)))
    if actual == digest:  # right content stored under another blob's name, as the client does after a stale ETag
        return _by_pieces(cache, listing, name, token)
    return actual


def _ask_client(cache: RepoCache, listing: Listing, name: str, token: Any) -> None:
    """Download with ``hf_hub_download``. A failure of Xet becomes ``ConnectionError``, which is retried without Xet."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(
            cache.repo_id,
            name,
            revision=listing.commit,
            cache_dir=cache.cache_dir,
            token=token,
            library_name="convstem",
        )
    except Exception as error:
        if is_of_xet(error):
            raise ConnectionError(f"Xet's storage: {error}") from error
        raise


def _ask_client_plainly(cache: RepoCache, listing: Listing, name: str, token: Any) -> None:
    """Download with ``hf_hub_download`` as under ``HF_HUB_DISABLE_XET=1``."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True  # affects other threads too, harmlessly: they also download without Xet
    try:
        _ask_client(cache, listing, name, token)
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _by_pieces(cache: RepoCache, listing: Listing, name: str, token: Any) -> str:
    """Download in pieces and return the content's hash; only right content enters the cache."""
    digest = listing.digest(name)
    partial = cache.partial_download(digest)
    try:
        download_pieces(cache.repo_id, listing.commit, name, listing.files[name].size or 0, partial, token)
    except Exception as error:
        if is_server_error(error):  # huggingface_hub has already retried for half a minute
            raise explain(error, cache.repo_id, listing.commit, token, listed=True) from error
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
        raise HubError(f"{name} of {cache.repo_id} is {size:,} bytes, but the cache's disk has {free:,} free")


def _mismatch_sentence(repo_id: str, name: str, expected: str, actual: str) -> str:
    return (
        f"{name} of {repo_id} is damaged after two downloads: expected hash {expected}, got {actual}; nothing was "
        f"kept. Report it at {web_page(repo_id, 'discussions')}, unless another network gives the right content"
    )


def download_pieces(repo_id: str, commit: str, filename: str, size: int, target: Path, token: Any = None) -> None:
    """Complete ``target``, which may hold a prefix of the file from an earlier try.

    This is for connections that break during huggingface_hub's single request. Every piece asks ``/resolve/`` again, so
    a signed URL cannot expire, and a killed process resumes at the last piece.

    Args:
        repo_id, commit, filename: the file on the Hub.
        size: its length in bytes.
        target: the partial file. Two processes may write it, since they write the same bytes to the same places.
        token: see ``fetch``.
    """
    from huggingface_hub import HfFileSystem
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    target.parent.mkdir(parents=True, exist_ok=True)
    done = min(target.stat().st_size, size) // PIECE * PIECE if target.exists() else 0
    files = HfFileSystem(token=token, skip_instance_cache=True)
    remote = files.open(f"{repo_id}@{commit}/{filename}", "rb", block_size=PIECE, cache_type="none", size=size)
    bar = tqdm(total=size, initial=done, unit="B", unit_scale=True, desc=filename, name="convstem.hub")
    with remote, bar, target.open("r+b" if target.exists() else "w+b") as file:
        for start in range(done, size, PIECE):
            length = min(PIECE, size - start)
            remote.seek(start)
            piece = remote.read(length)
            if len(piece) != length:
                raise ConnectionError(f"got {len(piece)} of {length} bytes of {filename} from byte {start}")
            file.seek(start)
            file.write(piece)
            bar.update(length)
        file.truncate(size)


@contextmanager
def progress_bars(show: bool) -> Iterator[None]:
    """Switch off huggingface_hub's progress bars inside the block, unless ``show``."""
    from huggingface_hub import utils

    if show or utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]
