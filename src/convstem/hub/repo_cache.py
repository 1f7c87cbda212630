"""Lists a repository's files and hashes at one commit. Finds and verifies files in the Hub cache."""

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
    """A file's entry in a listing, known before it is fetched."""

    size: int | None = None
    """Bytes."""
    digest: str = ""
    """Hash of the content: sha256 for a large file, git's sha1 for a small one; empty if unknown."""


@dataclass(frozen=True)
class Listing:
    """A repository's files at one commit."""

    commit: str
    files: Mapping[str, Listed]

    def digest(self, filename: str) -> str:
        """Return the content's hash; empty if unknown."""
        return self.files[filename].digest


def list_files(
    repo_id: str,
    revision: str | None = None,
    wanted: Iterable[str] = (),
    *,
    token: Any = None,
    attempts: int = ATTEMPTS,
) -> Listing:
    """Return a revision's commit and its files with hashes, normally in one request.

    Args:
        repo_id: ``org/name``.
        revision: branch, tag or commit; default: main.
        wanted: files that need hashes; if a mirror's listing lacks one, the file's headers are requested.
        token: a token, or False for none; default: huggingface_hub's login.
        attempts: largest number of tries per request.

    Raises:
        HubError: the repository cannot be read.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(library_name="convstem", token=token)

    def ask() -> Listing:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=timeout)
        if info.gated:  # the listing is public, the files are not
            api.auth_check(repo_id)
        return Listing(str(info.sha), {entry.rfilename: _listed(entry) for entry in info.siblings or ()})

    listing = retried(ask, repo_id, revision, token, attempts)
    lacking = [name for name in wanted if name in listing.files and not listing.digest(name)]
    told = {name: _from_headers(repo_id, listing.commit, name, token, attempts) for name in lacking}
    return replace(listing, files={**listing.files, **told})


def _listed(entry: RepoSibling) -> Listed:
    return Listed(entry.size, str(entry.lfs.sha256 if entry.lfs else entry.blob_id or ""))


def _from_headers(repo_id: str, commit: str, name: str, token: Any, attempts: int) -> Listed:
    """Return size and hash from the file's headers; an ETag that looks like a hash is the hash."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo_id, name, revision=commit)
    found = retried(lambda: get_hf_file_metadata(url, token=token), repo_id, commit, token, attempts)
    return Listed(found.size, found.etag if found.etag and DIGEST.fullmatch(found.etag) else "")


def check_present(repo_id: str, listing: Listing, filename: str) -> None:
    """Raise ``MissingFileError`` if a commit lacks a file, with a remedy if there are only pickles."""
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
"""A ``*.incomplete`` file unchanged for this long belongs to a killed process."""


_COMMIT = re.compile(r"[0-9a-f]{40}")


DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
"""A content's hash: sha256, or git's sha1."""


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a full commit sha."""
    return bool(revision and _COMMIT.fullmatch(revision))


def file_digest(path: Path, digest_size: int = 64) -> str:
    """Return the file's sha256, or git's blob sha1 if ``digest_size`` is 40. The Hub uses both as names of contents."""
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
        """huggingface_hub's folder for the repository."""
        return self.cache_dir / f"models--{self.repo_id.replace('/', '--')}"

    def pointer(self, commit: str, filename: str) -> Path:
        """Return the path of a commit's file, present or not."""
        return self.folder / "snapshots" / commit / filename

    def partial_download(self, digest: str) -> Path:
        """Return the path of a partial download in pieces."""
        return self.folder / "blobs" / f"{digest}.convstem-incomplete"

    def commit_of(self, revision: str | None) -> str | None:
        """Return the commit cached for a branch or tag; a full sha is returned as it is."""
        if is_commit(revision):
            return revision
        ref = self.folder / "refs" / (revision or "main")
        try:
            return (ref.is_file() and ref.read_text(encoding="utf-8").strip()) or None
        except (OSError, UnicodeDecodeError):
            return None

    def remember_ref(self, revision: str | None, commit: str) -> None:
        """Record the commit of a branch or tag, as the client does. Call it once all files are there."""
        if not is_commit(revision):
            ref = self.folder / "refs" / (revision or "main")
            store(ref, lambda temporary: temporary.write_text(commit, encoding="utf-8"))

    def verified(self, commit: str, filename: str, expected: str | None = None) -> str | None:
        """Return a cached file's digest if its content matches, else None. The content is hashed only once.

        Empty if the digest is unknown: another client stored the file in a cache without symlinks.

        Args:
            commit, filename: the file.
            expected: its digest on the Hub; default: the digest recorded at download, or the blob's name.
        """
        try:
            return self._verified(self.pointer(commit, filename), expected)
        except FileNotFoundError:  # deleted, perhaps just now
            return None

    def _verified(self, pointer: Path, expected: str | None) -> str | None:
        if not pointer.is_file():  # reading a pipe or device would never end
            return None
        note = Note(pointer, "digest")
        blob = _blob_name(pointer)
        expected = expected or note.answer or blob
        if blob and blob != expected:  # stored under another blob's name, as the client does after a stale ETag
            return None
        if not expected or (note.current and note.answer == expected):
            return expected
        if file_digest(pointer, len(expected)) != expected:
            return None
        note.keep(expected)
        return expected

    def discard(self, commit: str, filename: str) -> str | None:
        """Remove a wrong file and return its digest. A blob that matches its own name stays: other files may use it."""
        pointer = self.pointer(commit, filename)
        blob = pointer.resolve()
        name = _blob_name(pointer)
        actual = file_digest(blob, len(name) or 64) if pointer.is_file() else None
        if blob != pointer and actual != name and blob.is_relative_to(self.folder.resolve()):
            blob.unlink(missing_ok=True)  # only inside the cache: a link's target elsewhere belongs to somebody else
        pointer.unlink(missing_ok=True)
        return actual

    def adopt(self, file: Path, digest: str, commit: str, filename: str) -> None:
        """Move a complete, verified download to the place where the client would have put it."""
        blob, pointer = self.folder / "blobs" / digest, self.pointer(commit, filename)
        os.replace(file, blob)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # no symlinks here: copy, as huggingface_hub does
            write_whole(pointer, partial(shutil.copyfile, blob))
        Note(pointer, "digest").keep(digest)

    def sweep(self, digest: str) -> None:
        """Remove files left by killed downloads of this content."""
        for orphan in (self.folder / "blobs").glob(f"{digest}.*incomplete"):
            try:
                if time.time() - orphan.stat().st_mtime > ORPHAN_SECONDS:
                    orphan.unlink()
            except OSError:  # already removed by another process, or the cache is read-only
                continue


def _blob_name(pointer: Path) -> str:
    """Return the digest in the blob's name; empty if the cache has no symlinks."""
    name = pointer.resolve().name
    return name if DIGEST.fullmatch(name) else ""


@dataclass(frozen=True)
class Recheck:
    """The result of hashing one verified file again."""

    file: str
    state: str
    """``right``, ``damaged``, ``unreadable``, ``changed`` (its next use checks it anyway) or ``gone``."""

    @property
    def bad(self) -> bool:
        """Whether the file, or the disk below it, cannot be trusted."""
        return self.state in ("damaged", "unreadable")

    def to_json(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return asdict(self)


def recheck() -> Iterator[Recheck]:
    """Hash every verified file again and yield the results; a damaged file is fetched again on its next use.

    Verification is remembered by size and modification time, which a dying disk does not change.
    """
    for path, note in kept():
        digest = _digest(note)
        if digest:
            state = _state(Path(note["file"]), note, digest)
            if state in ("damaged", "gone"):
                forget(path)
            yield Recheck(note["file"], state)


def _digest(note: dict[str, Any]) -> str:
    """Return the hash in a note about a file from the Hub or in this package; empty for other notes."""
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
    except OSError:  # also from a dying disk
        return "unreadable"
