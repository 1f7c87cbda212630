# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""Reading from the Hub: one commit per call, verified once, offline if possible, else a clear error."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import Client, Fault, HubServer, run_python
from tests.support.hub_server.client import Outcome, environment
from tests.support.hub_server.fault_table import CONVSTEM, kill_while_downloading
from tests.support.hub_server.fixtures import REPO, anonymous, cache, client, hub, repo, server  # noqa: F401
from tests.support.hub_server.store import Entry

ONE, TWO = b"one" * 50_000, b"two" * 50_000
FETCH = "from convstem.hub.read import fetch\n"
FETCH += "file = fetch('org/m', cache_dir={cache!r})\nresult = [str(file.path), file.commit]"


def fetch(client: Client, cache: str, arguments: str = "") -> Outcome:
    return client(
        f"from convstem.hub.read import fetch\nf = fetch('org/m', cache_dir={cache!r}, {arguments})\n"
        "result = {'path': str(f.path), 'commit': f.commit, 'sha256': f.sha256}"
    )


def requests(hub: HubServer) -> list[str]:
    return [f"{method} {path.rsplit('/', 1)[-1]}" for _, method, path, _ in hub.log]


def test_what_comes_back(hub: HubServer, client: Client, cache: str, repo: Callable[..., str]) -> None:
    sha = repo({"model.safetensors": ONE, "config.json": b"{}"})
    outcome = client(
        f"from convstem.hub.read import fetch_all\nf = fetch_all('org/m', ['config.json', 'model.safetensors'],"
        f" cache_dir={cache!r})\nresult = [[x.repo_id, x.commit, x.sha256 is None, str(x.path)] for x in f.values()]"
    )
    (config, weights) = outcome.value
    assert config[:3] == [REPO, sha, True]
    assert weights[:3] == [REPO, sha, False]
    assert Path(weights[3]).read_bytes() == ONE
    assert Path(config[3]).parent == Path(weights[3]).parent


def test_requests_cold_warm_and_pinned(hub: HubServer, client: Client, cache: str, repo: Callable[..., str]) -> None:
    sha = repo({"model.safetensors": ONE})
    assert not fetch(client, cache).error
    assert len(hub.log) == 3  # listing, HEAD, GET
    hub.log.clear()
    assert not fetch(client, cache).error
    assert len(hub.log) == 1
    hub.log.clear()
    assert fetch(client, cache, f"revision={sha!r}").value["commit"] == sha
    assert hub.log == []


def test_verified_files_are_not_hashed_again_until_they_change(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str]
) -> None:
    repo({"model.safetensors": ONE})
    path = fetch(client, cache).value["path"]
    forbid = "import convstem.hub.repo_cache as c\nreal, c.file_digest = c.file_digest, None\n"
    try:
        assert not client(forbid + FETCH.format(cache=cache)).error
        Path(path).write_bytes(TWO)  # through the link into the blob
        assert "NoneType" in client(FETCH.format(cache=cache)).error  # negative control: now it needs to hash
    finally:
        client("c.file_digest = real")
    assert Path(fetch(client, cache).value["path"]).read_bytes() == ONE


def test_weights_come_from_the_commit_of_the_config_that_timm_read(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str]
) -> None:
    old = repo({"model.safetensors": ONE, "config.json": b"1"})
    client(f"from huggingface_hub import hf_hub_download\nhf_hub_download('org/m', 'config.json', cache_dir={cache!r})")
    repo({"model.safetensors": TWO, "config.json": b"2"})
    seen = client(
        f"from convstem.hub.read import cached_config\nresult = cached_config('org/m', None, {cache!r}).parent.name"
    ).value
    assert seen == old
    assert Path(fetch(client, cache, f"revision={seen!r}").value["path"]).read_bytes() == ONE
    assert Path(fetch(client, cache).value["path"]).read_bytes() == TWO


def test_a_stale_pointer_does_not_survive_an_etag_mix_up(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str]
) -> None:
    """The cache has the old commit, then a HEAD for the new commit still names the old content."""
    repo({"model.safetensors": ONE})
    old = fetch(client, cache).value
    repo({"model.safetensors": TWO})
    stale = (("X-Linked-Etag", f'"{old["sha256"]}"'),)
    hub.arm(Fault(origin="hub", method="HEAD", path="resolve", replace=stale, times=99))
    assert Path(fetch(client, cache).value["path"]).read_bytes() == TWO
    assert Path(old["path"]).read_bytes() == ONE


@pytest.mark.parametrize(("revision", "cold"), [("None", False), ("'main'", False), ("'missing'", True)])
def test_offline(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str], revision: str | None, cold: bool
) -> None:
    repo({"model.safetensors": ONE})
    fetch(client, cache)
    hub.log.clear()
    code = f"from convstem.hub.read import fetch\nprint(fetch('org/m', revision={revision}, cache_dir={cache!r}).path)"
    process = run_python(code, **{**hub.env, "HF_HUB_OFFLINE": "1"})
    assert hub.log == []
    if cold:
        assert (
            "the Hub is switched off (HF_HUB_OFFLINE) and the cache does not have it: org/m@missing" in process.stderr
        )
    else:
        assert Path(process.stdout.strip()).read_bytes() == ONE


def test_a_token_goes_to_the_hub_and_nowhere_else(
    hub: HubServer, client: Client, anonymous: Client, cache: str, repo: Callable[..., str]
) -> None:
    secret = "hf_verysecret"
    hub.store.create(REPO, private_to={secret})
    hub.store.commit(REPO, "main", {"model.safetensors": ONE})
    outcome = anonymous(FETCH.format(cache=cache))
    assert outcome.kind == "AccessDeniedError"
    assert "it is private and no token is set; check the spelling, and log in with `hf auth login`" in outcome.error
    assert fetch(anonymous, cache, f"token={secret!r}").value
    assert [auth for origin, _, _, auth in hub.log if origin == "cdn"] == [False]
    assert any(auth for origin, _, _, auth in hub.log if origin == "hub")
    hub.store.repos[REPO].readers = set()
    for fault in (None, Fault(origin="hub", method="HEAD", status=403, times=9)):
        hub.arm(*([fault] if fault else []))
        outcome = fetch(anonymous, cache + "2", f"token={secret!r}")
        assert "the token in use has no access to it" in outcome.error
        assert secret not in outcome.error + outcome.output + "".join(outcome.warnings)


def test_gated_cold_and_revoked(
    hub: HubServer, client: Client, anonymous: Client, cache: str, repo: Callable[..., str]
) -> None:
    repo({"model.safetensors": ONE})
    hub.store.repos[REPO].gated, hub.store.repos[REPO].readers = True, {"writer"}
    assert "is gated (401): accept its conditions at" in fetch(anonymous, cache).error
    assert not fetch(client, cache).warnings
    hub.store.repos[REPO].readers = set()
    outcome = fetch(client, cache)
    assert outcome.value
    assert "is gated (403)" in outcome.warnings[0]
    assert "Using the copy in the cache, commit" in outcome.warnings[0]


@pytest.mark.full
@pytest.mark.parametrize(
    "call",
    [
        "timm.create_model('vit_s16_dinov3_convstem', pretrained=True)",
        "convstem.load('vit_s16_dinov3_convstem')",
        "convstem.pull('vit_small_patch16_dinov3_convstem.lvd1689m')",
        "convstem.transplant('vit_small_patch16_dinov3.lvd1689m')",
    ],
)
def test_a_gated_source_says_where_to_accept_its_licence(call: str, hub: HubServer, anonymous: Client) -> None:
    source = "timm/vit_small_patch16_dinov3.lvd1689m"
    hub.store.create(source)
    hub.store.commit(source, "main", {"model.safetensors": ONE, "config.json": b"{}"})
    hub.store.repos[source].gated, hub.store.repos[source].readers = True, {"writer"}
    outcome = anonymous(f"import timm, convstem\n{call}")
    assert outcome.kind == "AccessDeniedError"
    page = f"{hub.api.url}/{source}"
    assert (
        f"{source} is gated (401): accept its conditions at {page}, then log in with `hf auth login`" in outcome.error
    )


@pytest.mark.parametrize(
    ("files", "code", "message"),
    [
        ({"pytorch_model.bin": b"x"}, "fetch('org/m'{c})", "only pickled weights .* `convstem convert pytorch"),
        ({"config.json": b"{}"}, "fetch('org/m'{c})", "has no model.safetensors at commit .*; it has .*config.json"),
        ({"model.safetensors": ONE}, "fetch('org/m', 'config.json'{c})", "org/m has no config.json at commit"),
        ({"model.safetensors": ONE}, "fetch('org/m', revision='v9'{c})", "org/m has no revision 'v9'"),
        ({}, "fetch('org/m', '../../x.safetensors'{c})", "by plain relative paths; got '../../x.safetensors'"),
        ({}, "fetch('org/m', '/etc/x.safetensors'{c})", "by plain relative paths"),
        ({}, "fetch('org/m', 'pytorch_model.bin'{c})", r"only README.md, config.json and \*.safetensors are read"),
        ({}, "fetch('a/b/c'{c})", "Repo id must"),
        ({}, "fetch('../m'{c})", "Repo id must"),
        ({}, "fetch('org/absent'{c})", r"the Hub refuses org/absent \(404\)"),
    ],
)  # fmt: skip
def test_bad_input(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str], files: Any, code: str, message: str
) -> None:
    repo(files)
    outcome = client("from convstem.hub.read import fetch\n" + code.format(c=f", cache_dir={cache!r}"))
    assert outcome.kind in (
        "AccessDeniedError",
        "ArgumentError",
        "HFValidationError",
        "MissingFileError",
        "RevisionMissingError",
    )
    assert re.search(message, outcome.error or ""), outcome.error


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("model.safetensors", 10**16, "10,000,000,000,000,000 bytes, but the cache's disk has"),
     ("config.json", 10**8, "config.json of org/m is 100,000,000 bytes; at most 16,777,216 are read")],
)  # fmt: skip
def test_absurd_sizes_are_refused_before_the_download(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str], name: str, size: int, message: str
) -> None:
    repo({name: Entry("0" * 40, size, "0" * 64)})
    outcome = client(f"from convstem.hub.read import fetch\nfetch('org/m', {name!r}, cache_dir={cache!r})")
    assert message in outcome.error
    assert len(hub.log) == 1


def test_killed_while_downloading(hub: HubServer, client: Client, cache: str, repo: Callable[..., str]) -> None:
    repo({"model.safetensors": ONE})
    (orphan,) = kill_while_downloading(hub, CONVSTEM, cache)
    os.utime(orphan, (0, 0))  # as if it were old
    assert Path(fetch(client, cache).value["path"]).read_bytes() == ONE
    assert not orphan.exists()


@pytest.mark.full
def test_a_broken_download_resumes_where_it_stopped(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str]
) -> None:
    large = os.urandom(20 << 20)
    repo({"model.safetensors": large})
    hub.arm(
        Fault(reset=1000),
        Fault(ranged=True, skip=1, status=404, headers=(("X-Error-Code", "EntryNotFound"),), times=1),
    )
    assert "does not have the requested file" in fetch(client, cache).error
    (partial,) = Path(cache).glob("models--*/blobs/*.convstem-incomplete")
    assert partial.stat().st_size == 16 << 20
    hub.arm()
    assert Path(fetch(client, cache).value["path"]).read_bytes() == large
    assert [origin for origin, *_ in hub.log].count("cdn") == 1  # the last piece
    assert not partial.exists()


PATIENT = {"HF_HUB_DOWNLOAD_TIMEOUT": "60", "HF_HUB_ETAG_TIMEOUT": "60"}
"""Keeps the client from asking twice on a busy machine."""


def test_16_threads_download_once(hub: HubServer, cache: str, repo: Callable[..., str]) -> None:
    repo({"model.safetensors": ONE})
    code = f"""
        from concurrent.futures import ThreadPoolExecutor
        from convstem.hub.read import fetch
        with ThreadPoolExecutor(16) as pool:
            jobs = [pool.submit(fetch, "org/m", cache_dir={cache!r}) for _ in range(16)]
        print(*{{str(job.result().path) for job in jobs}})
    """
    process = run_python(code, **{**hub.env, **PATIENT})
    (path,) = process.stdout.split()
    assert Path(path).read_bytes() == ONE
    assert [origin for origin, *_ in hub.log].count("cdn") == 1


@pytest.mark.full
def test_4_processes_download_once(hub: HubServer, cache: str, repo: Callable[..., str]) -> None:
    repo({"model.safetensors": ONE})
    hub.arm(Fault(wait=0.5, times=4))
    code = textwrap.dedent(FETCH.format(cache=cache)) + "\nimport json\nprint(json.dumps(result))"
    env = environment(**{**hub.env, **PATIENT})
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    paths = {json.loads(process.communicate(timeout=60)[0])[0] for process in processes}
    assert [Path(path).read_bytes() for path in paths] == [ONE]
    assert [origin for origin, *_ in hub.log].count("cdn") == 1


def test_disk_full(hub: HubServer, client: Client, cache: str, repo: Callable[..., str]) -> None:
    """A limit on file size stands in for a full disk: the write fails half-way."""
    repo({"model.safetensors": ONE})
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
    process = run_python(limit + FETCH.format(cache=cache), **hub.env)
    assert "HubError: cannot store org/m@" in process.stderr
    assert "files cannot be that large here; HF_HUB_CACHE chooses another folder" in process.stderr
    kept = [path.suffix for path in Path(cache).glob("models--*/blobs/*")]
    assert set(kept) <= {".incomplete"}  # huggingface_hub 0.x leaves it for the next try
    assert Path(fetch(client, cache).value["path"]).read_bytes() == ONE


def test_a_cache_that_cannot_be_written(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str], tmp_path: Path
) -> None:
    sha = repo({"model.safetensors": ONE})
    Path(cache).write_text("a file")
    assert "cannot store org/m@" in fetch(client, cache).error
    Path(cache).unlink()
    (tmp_path / "ours").write_text("a file")  # so notes on verified files cannot be kept
    call = f"from convstem.hub.read import fetch\nprint(fetch('org/m', cache_dir={cache!r}, revision={sha!r}).path)"
    for _ in range(2):
        process = run_python(call, **hub.env, CONVSTEM_CACHE=str(tmp_path / "ours"))
        assert Path(process.stdout.strip()).read_bytes() == ONE, process.stderr


def test_pull_takes_the_card_if_there_is_one(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str], tmp_path: Path
) -> None:
    old = repo({"model.safetensors": ONE, "config.json": b"{}"})
    repo({"README.md": b"# card"})
    for revision, names in (
        (f"'{old}'", ["config.json", "model.safetensors"]),
        ("None", ["README.md", "config.json", "model.safetensors"]),
    ):
        out = str(tmp_path / f"out{len(names)}")
        outcome = client(f"import convstem\nconvstem.pull('org/m', {revision}, {out!r}, cache_dir={cache!r})")
        assert outcome.error is None
        assert sorted(path.name for path in Path(out).iterdir()) == names


def test_pull_needs_config_and_weights(hub: HubServer, client: Client, cache: str, repo: Callable[..., str]) -> None:
    repo({"model.safetensors": ONE})
    code = f"import convstem\nconvstem.pull('org/m', cache_dir={cache!r})"
    assert "org/m has no config.json at commit" in client(code).error
