"""Repositories in memory: commits, branches, pull requests, and contents by hash."""

import hashlib
import itertools
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LFS_SUFFIXES = (".bin", ".pt", ".pth", ".safetensors")


class StoreError(Exception):
    """A refusal in the Hub's form: HTTP status and X-Error-Code."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Entry:
    """One file of a commit."""

    blob_id: str
    size: int
    sha256: str | None


@dataclass
class Repo:
    """One repository; ``readers`` are the tokens that may read it, None means everybody."""

    files: dict[str, dict[str, Entry]] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    readers: set[str] | None = None
    gated: bool = False

    def resolve(self, revision: str | None) -> str:
        """Return the commit of a branch, a pull request's ref or a sha."""
        names = (revision, f"refs/heads/{revision}")
        sha = next((self.refs[name] for name in names if name in self.refs), revision)
        if sha not in self.files:
            raise StoreError(404, "RevisionNotFound")
        return sha


class Store:
    """All repositories, and contents by sha256 (large files) or git's blob id (small files)."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.contents: dict[str, bytes] = {}
        self.lock = threading.RLock()
        self.counter = itertools.count()

    def create(self, repo_id: str, private_to: Any = None) -> str:
        """Create a repository with the first commit that the real Hub makes."""
        with self.lock:
            if repo_id in self.repos:
                raise StoreError(409, "", "You already created this model repo")
            self.repos[repo_id] = Repo(readers=private_to)
            return self.commit(
                repo_id, "main", {".gitattributes": b"*.safetensors filter=lfs\n"}, message="initial commit"
            )

    def repo(self, repo_id: str, token: str | None = None) -> Repo:
        """Return a repository that this token may list."""
        repo = self.repos.get(repo_id)
        if repo is None or (repo.readers is not None and not repo.gated and token not in repo.readers):
            raise StoreError(404 if token else 401, "RepoNotFound", "Repository not found")
        return repo

    def check_files(self, repo_id: str, token: str | None) -> None:
        """Raise unless this token may read the files; in a gated repository listing it is not enough."""
        repo = self.repo(repo_id, token)
        if repo.gated and token not in (repo.readers or ()):
            raise StoreError(403 if token else 401, "GatedRepo", "Access to this model is restricted")

    def add(self, content: bytes, path: str) -> Entry:
        """Store a content and return its entry."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not path.endswith(LFS_SUFFIXES):
            blob_id = git_hash(content)
            self.contents[blob_id] = content
            return Entry(blob_id, len(content), None)
        self.contents[sha256] = content
        return lfs_entry(sha256, len(content))

    def commit(
        self,
        repo_id: str,
        revision: str,
        files: Mapping[str, bytes | Entry],
        delete: Iterable[str] = (),
        parent: str | None = None,
        message: str = "",
        pull_request: bool = False,
    ) -> str:
        """Commit contents (bytes, or entries of uploaded files) onto a branch; return the commit's sha."""
        with self.lock:
            repo = self.repos[repo_id]
            head = repo.refs.get(f"refs/heads/{revision}") or repo.refs.get(revision)
            if head is None and repo.refs:
                raise StoreError(404, "RevisionNotFound")
            if parent and parent != head and not pull_request:
                raise StoreError(412, "", "A commit has happened since. Please refresh and try again.")
            base = parent or head
            tree = dict(repo.files.get(base or "", {}))
            for path in delete:
                if tree.pop(path, None) is None:
                    raise StoreError(404, "EntryNotFound", "A file with this name doesn't exist")
            tree |= {p: self.add(c, p) if isinstance(c, bytes) else c for p, c in files.items()}
            text = json.dumps([base, sorted((p, e.blob_id) for p, e in tree.items()), message, next(self.counter)])
            sha = hashlib.sha1(text.encode()).hexdigest()
            repo.files[sha], repo.parents[sha], repo.messages[sha] = tree, base, message
            if pull_request:
                repo.pulls.append({"num": len(repo.pulls) + 1, "title": message, "status": "open"})
                repo.refs[f"refs/pr/{len(repo.pulls)}"] = sha
            else:
                repo.refs[revision if revision.startswith("refs/") else f"refs/heads/{revision}"] = sha
            return sha

    def content(self, entry: Entry) -> bytes:
        """Return the bytes of a file."""
        return self.contents[entry.sha256 or entry.blob_id]

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """Return a file's bytes at a revision."""
        repo = self.repos[repo_id]
        return self.content(repo.files[repo.resolve(revision)][path])

    def names(self, repo_id: str, revision: str = "main") -> list[str]:
        """Return the file names at a revision, without the Hub's own ``.gitattributes``."""
        repo = self.repos[repo_id]
        return sorted(set(repo.files[repo.resolve(revision)]) - {".gitattributes"})

    def history(self, repo_id: str, revision: str = "main") -> list[str]:
        """Return the commit messages, newest first, without the Hub's own first one."""
        repo, found = self.repos[repo_id], []
        sha: str | None = repo.resolve(revision)
        while sha is not None:
            found.append(repo.messages[sha])
            sha = repo.parents[sha]
        return found[:-1]


def git_hash(content: bytes) -> str:
    """Return git's blob id."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_entry(sha256: str, size: int) -> Entry:
    """Return the entry of a large file; its blob id is that of the pointer file."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Entry(git_hash(pointer.encode()), size, sha256)
