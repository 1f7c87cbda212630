# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""The installed huggingface_hub lays out its cache as ``convstem.hub.repo_cache`` reads and writes it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub import scan_cache_dir, try_to_load_from_cache

from convstem.hub.repo_cache import RepoCache
from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.fixtures import REPO, cache, client, hub, repo, server  # noqa: F401

WEIGHTS = "model.safetensors"
CONTENT = b"weights" * 1000
CHANGED = f"huggingface_hub {huggingface_hub.__version__} lays out its cache otherwise: mend convstem/hub/repo_cache.py"

DOWNLOAD = """
from huggingface_hub import hf_hub_download
result = [hf_hub_download('org/m', name, cache_dir={cache!r}) for name in ('model.safetensors', 'config.json')]
"""


def test_where_the_client_puts_blobs_snapshots_and_refs(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str]
) -> None:
    commit = repo({WEIGHTS: CONTENT, "config.json": b"{}"})
    ours = RepoCache(REPO, Path(cache))
    digests = {WEIGHTS: hashlib.sha256(CONTENT).hexdigest(), "config.json": hashlib.sha1(b"blob 2\0{}").hexdigest()}
    for name, path in zip(digests, client(DOWNLOAD.format(cache=cache)).value, strict=True):
        assert Path(path) == ours.pointer(commit, name), CHANGED
        assert Path(path).resolve() == Path(cache).resolve() / ours.folder.name / "blobs" / digests[name], CHANGED
        assert ours.verified(commit, name) == digests[name], CHANGED
    assert ours.commit_of("main") == ours.commit_of(None) == commit, CHANGED
    assert ours.commit_of("another") is None


def test_the_client_finds_what_we_put(tmp_path: Path) -> None:
    ours, commit, digest = RepoCache(REPO, tmp_path), "c" * 40, hashlib.sha256(CONTENT).hexdigest()
    assert try_to_load_from_cache(REPO, WEIGHTS, cache_dir=tmp_path) is None
    partial = ours.partial_download(digest)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT)
    ours.adopt(partial, digest, commit, WEIGHTS)
    ours.remember_ref(None, commit)
    ours.remember_ref("v1", commit)
    for revision in (None, "v1", commit):
        found = try_to_load_from_cache(REPO, WEIGHTS, cache_dir=tmp_path, revision=revision)
        assert found == str(ours.pointer(commit, WEIGHTS)), CHANGED
    scanned = scan_cache_dir(tmp_path)
    assert scanned.warnings == [], CHANGED
    (one,) = scanned.repos
    assert (one.repo_id, one.size_on_disk, set(one.refs)) == (REPO, len(CONTENT), {"main", "v1"}), CHANGED
