"""What a repository holds at one commit, with hashes; and the Hub cache: its files by commit, which were verified."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convstem.errors import MissingFileError
from convstem.files.cache import Note, forget, kept, store
from convstem.files.paths import write_whole
from convstem.hub.failures import ATTEMPTS, retried
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


CHUNK = 1 << 20


ORPHAN_SECONDS = 3600.0
"""A ``*.incomplete`` file that nobody wrote to for so long belongs to a killed process."""


_COMMIT = re.compile(r"[0-9a-f]{40}")


DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
"""How a content's hash is written: sha256, or git's sha1."""


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a full commit sha."""
    return bool(revision and _COMMIT.fullmatch(revision))


def file_digest(path: Path, digest_size: int = 64) -> str:
    """Return the file's sha256, or for 40 digits git's blob sha1: the two names that the Hub gives to contents."""
    hasher = hashlib.sha256() if digest_size == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


@dataclass(frozen=True)
class RepoCache:
    """One model repository's folder in the Hub cache."""

    repo_id: str
    cache_dir: Path

    @property
    def folder(self) -> Path:
        """Where huggingface_hub keeps the repository."""
        return self.cache_dir / f"models--{self.repo_id.replace('/', '--')}"

    def pointer(self, commit: str, filename: str) -> Path:
        """Return where the file of a commit lies, present or not."""
        return self.folder / "snapshots" / commit / filename

    def partial_download(self, digest: str) -> Path:
        """Return where a download in pieces grows."""
        return self.folder / "blobs" / f"{digest}.convstem-incomplete"

    def commit_of(self, revision: str | None) -> str | None:
        """Return the commit that the cache remembers for a branch, a tag or a sha."""
        if is_commit(revision):
            return revision
        ref = self.folder / "refs" / (revision or "main")
        try:
            return (ref.is_file() and ref.read_text(encoding="utf-8").strip()) or None
        except (OSError, UnicodeDecodeError):
            return None

    def remember_ref(self, revision: str | None, commit: str) -> None:
        """Record the commit of a branch or tag, as the client does, once all its files are there."""
        if not is_commit(revision):
            ref = self.folder / "refs" / (revision or "main")
            store(ref, lambda temporary: temporary.write_text(commit, encoding="utf-8"))

    def verified(self, commit: str, filename: str, expected: str | None = None) -> str | None:
        """Return the digest of a cached file if its content has it; hash the content unless that was done before.

        Empty where nothing tells the digest: a file that another client stored in a cache without symlinks.

        Args:
            commit, filename: the file.
            expected: its digest on the Hub; by default what was recorded at download, or the blob's name.
        """
        try:
            return self._verified(self.pointer(commit, filename), expected)
        except FileNotFoundError:  # deleted, perhaps just now
            return None

    def _verified(self, pointer: Path, expected: str | None) -> str | None:
        if not pointer.is_file():  # a pipe or a device would be read for ever
            return None
        note = Note(pointer, "digest")
        blob = _blob_name(pointer)
        expected = expected or note.answer or blob
        if blob and blob != expected:  # stored under another content's name, as the client does after a stale ETag
            return None
        if not expected or (note.current and note.answer == expected):
            return expected
        if file_digest(pointer, len(expected)) != expected:
            return None
        note.keep(expected)
        return expected

    def discard(self, commit: str, filename: str) -> str | None:
        """Remove a wrong file and return the digest it had; a blob that is what its name says stays for its owner."""
        pointer = self.pointer(commit, filename)
        blob = pointer.resolve()
        name = _blob_name(pointer)
        actual = file_digest(blob, len(name) or 64) if pointer.is_file() else None
        if blob != pointer and actual != name and blob.is_relative_to(self.folder.resolve()):
            blob.unlink(missing_ok=True)  # not what a link leads to elsewhere, which is somebody's
        pointer.unlink(missing_ok=True)
        return actual

    def adopt(self, file: Path, digest: str, commit: str, filename: str) -> None:
        """Move a complete and verified download to where the client would have put it."""
        blob, pointer = self.folder / "blobs" / digest, self.pointer(commit, filename)
        os.replace(file, blob)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # a file system without symlinks: huggingface_hub copies too
            write_whole(pointer, partial(shutil.copyfile, blob))
        Note(pointer, "digest").keep(digest)

    def sweep(self, digest: str) -> None:
        """Remove what killed downloads of this content left behind."""
        for orphan in (self.folder / "blobs").glob(f"{digest}.*incomplete"):
            try:
                if time.time() - orphan.stat().st_mtime > ORPHAN_SECONDS:
                    orphan.unlink()
            except OSError:  # another process was faster, or the cache is not ours to write
                continue


def _blob_name(pointer: Path) -> str:
    """Return the digest in the blob's name; empty where the cache has no symlinks."""
    name = pointer.resolve().name
    return name if DIGEST.fullmatch(name) else ""


@dataclass(frozen=True)
class Recheck:
    """What became of one verified file."""

    file: str
    state: str
    """``right``, ``damaged``, ``unreadable``, ``changed`` (its next use checks it anyway) or ``gone``."""

    @property
    def bad(self) -> bool:
        """Whether the file, or the disk below it, cannot be trusted."""
        return self.state in ("damaged", "unreadable")

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-plain."""
        return asdict(self)


def recheck() -> Iterator[Recheck]:
    """Yield every file whose hash was once compared, hashed anew; a damaged one is fetched again on its next use.

    "Verified once" goes by size and time, which a dying disk does not change.
    """
    for path, note in kept():
        digest = _digest(note)
        if digest:
            state = _state(Path(note["file"]), note, digest)
            if state in ("damaged", "gone"):
                forget(path)
            yield Recheck(note["file"], state)


def _digest(note: dict[str, Any]) -> str:
    """Return the hash that a note is about: that of a file from the Hub, or of one in this package."""
    question = str(note.get("question", ""))
    told = str(note.get("answer", "")) if question == "digest" else question.removeprefix("sha256 ")
    return told if DIGEST.fullmatch(told) else ""


def _state(file: Path, note: dict[str, Any], digest: str) -> str:
    try:
        stat = file.stat()
        if {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns} != {key: note.get(key) for key in ("size", "mtime_ns")}:
            return "changed"
        return "right" if file_digest(file, len(digest)) == digest else "damaged"
    except FileNotFoundError:
        return "gone"
    except OSError:  # a dying disk says so too
        return "unreadable"
