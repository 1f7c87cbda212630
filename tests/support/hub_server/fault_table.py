"""The faults of a download as a table: what is injected, and convstem's promise."""

import hashlib
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.client import Outcome, environment
from tests.support.hub_server.faults import Fault

REPO = "org/m"
SMALL, LARGE = 300_000, 24_000_000
RIGHT = "right bytes"


@dataclass(frozen=True)
class Row:
    """One fault.

    Args:
        name: what happens.
        faults: the server's faults.
        expected: outcome of ``fetch``: ``RIGHT``, ``RIGHT`` with a warning, or a pattern of the error.
        size: file size in bytes.
        warm: fetch once before.
        before: changes the server's store after the warm fetch.
        slow: takes many seconds.
    """

    name: str
    faults: Callable[[str], tuple[Fault, ...]]
    expected: str = RIGHT
    size: int = SMALL
    warm: bool = False
    before: Callable[[HubServer], None] = lambda hub: None
    slow: bool = False


def head(**fault: Any) -> Fault:
    return Fault(origin="hub", method="HEAD", path="/resolve/", **fault)


def api(**fault: Any) -> Fault:
    return Fault(origin="hub", method="GET", path="/api/models/", **fault)


def revoke(hub: HubServer) -> None:
    hub.store.repos[REPO].readers = {"somebody else"}


ROWS = (
    Row("nothing (control)", lambda old: ()),
    Row("one byte flipped, right length", lambda old: (Fault(flip=1000),)),
    Row(
        "one byte flipped every time",
        lambda old: (Fault(flip=1000, times=99),),
        "is damaged after two downloads: expected hash",
    ),
    Row(
        "corrupt bytes in a resumed download",
        lambda old: (Fault(drop=12_000_000), Fault(ranged=True, flip=5)),
        size=LARGE,
        slow=True,
    ),
    Row("truncated, lengths known", lambda old: (Fault(truncate=1000),)),
    Row("truncated, no X-Linked-Size", lambda old: (Fault(truncate=1000), head(hide=("X-Linked-Size",)))),
    Row("connection dropped after 12 MB", lambda old: (Fault(drop=12_000_000),), size=LARGE, slow=True),
    Row("connection dropped every 9 MB", lambda old: (Fault(drop=9_000_000, times=999),), size=LARGE, slow=True),
    Row("TCP reset mid-body", lambda old: (Fault(reset=100_000),)),
    Row("CDN 500 on GET", lambda old: (Fault(status=500),)),
    Row("CDN 503 on GET", lambda old: (Fault(status=503),)),
    Row("CDN 500 on every GET", lambda old: (Fault(status=500, times=999),), "no complete answer .*500", slow=True),
    Row("503 on HEAD and on the API", lambda old: (head(status=503), api(status=503))),
    Row(
        "429 with Retry-After",
        lambda old: tuple(f(status=429, headers=(("Retry-After", "1"),)) for f in (head, api)),
        slow=True,
    ),
    Row("no bytes for longer than the timeout", lambda old: (Fault(stall=1000),), slow=True),
    Row(
        "signed URL expires before the resume",
        lambda old: (Fault(drop=12_000_000), head(once_only=True)),
        size=LARGE,
        slow=True,
    ),
    Row("stale ETag on HEAD", lambda old: (head(replace=(("X-Linked-Etag", f'"{old}"'),), times=1),)),
    Row("HEAD 403 without error code, cold cache", lambda old: (head(status=403, times=99),), r"refuses .*\(403\)"),
    Row("HEAD 404 without error code, cold cache", lambda old: (head(status=404, times=99),), r"refuses .*\(404\)"),
    Row(
        "Hub down, warm cache",
        lambda old: (head(status=503, times=999), api(status=503, times=999)),
        f"{RIGHT}; warning: no complete answer",
        warm=True,
    ),
    Row("access revoked, warm cache", lambda old: (), f"{RIGHT}; warning: the Hub refuses", warm=True, before=revoke),
)

STOCK = """
from huggingface_hub import hf_hub_download
path = hf_hub_download({repo!r}, "model.safetensors", cache_dir={cache!r})
"""

CONVSTEM = """
from convstem.hub.read import fetch
path = fetch({repo!r}, cache_dir={cache!r}).path
"""

# A blob whose name is not its content's hash would be taken for another file, now or later.
AUDIT = """
import hashlib, pathlib
digest = lambda file: hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()
blobs = [b for b in pathlib.Path({cache!r}).glob("models--*/blobs/*") if len(b.name) == 64]
result = [digest(path), [b.name for b in blobs if digest(b) != b.name]]
"""


def content(size: int, seed: int = 0) -> bytes:
    """Return bytes that are the same in every run."""
    return random.Random(seed).randbytes(size)


def run_row(hub: HubServer, client: Client, row: Row, code: str, cache: str | Path) -> str:
    """Run one row and return its outcome in words.

    Args:
        hub: the server; its repository is replaced.
        client: where the code runs.
        row: the fault.
        code: ``STOCK`` or ``CONVSTEM``.
        cache: an empty folder.
    """
    old, new = fill(hub, row.size)
    script = code.format(repo=REPO, cache=str(cache)) + AUDIT.format(cache=str(cache))
    hub.arm()
    if row.warm:
        client(script)
    row.before(hub)
    hub.arm(*row.faults(hashlib.sha256(old).hexdigest()))
    return describe(client(script), hashlib.sha256(new).hexdigest())


def fill(hub: HubServer, size: int) -> tuple[bytes, bytes]:
    """Create the repository again with two commits; return the old and the new weights' contents."""
    hub.store.repos.pop(REPO, None)
    hub.store.create(REPO)
    old, new = content(size, seed=1), content(size, seed=2)
    hub.store.commit(REPO, "main", {"model.safetensors": old, "config.json": b"{}"}, message="old")
    hub.store.commit(REPO, "main", {"model.safetensors": new}, message="new")
    return old, new


def kill_while_downloading(hub: HubServer, code: str, cache: str | Path) -> list[Path]:
    """Run code in a process, SIGKILL it in the middle of the file, and return the files it left."""
    hub.arm(Fault(stall=100_000))
    env = environment(**hub.env | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"})
    process = subprocess.Popen([sys.executable, "-c", code.format(repo=REPO, cache=str(cache))], env=env)
    pattern = "models--*/blobs/*.incomplete"
    while not (hub.progress.is_set() and list(Path(cache).glob(pattern))):
        if process.poll() is not None:
            raise RuntimeError("the process ended before it could be killed")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    hub.arm()
    return list(Path(cache).glob(pattern))


def run_killed(hub: HubServer, client: Client, code: str, cache: str | Path) -> str:
    """Kill a download, run it again in another process and return the outcome in words."""
    _, new = fill(hub, SMALL)
    kill_while_downloading(hub, code, cache)
    script = code.format(repo=REPO, cache=str(cache)) + AUDIT.format(cache=str(cache))
    return describe(client(script), hashlib.sha256(new).hexdigest())


def run_together(hub: HubServer, client: Client, code: str, cache: str | Path, threads: int) -> str:
    """Run the same download in 16 threads or 4 processes at once and return the outcome in words."""
    _, new = fill(hub, SMALL)
    hub.arm(Fault(wait=0.3, times=99))
    script = code.format(repo=REPO, cache=str(cache))
    if threads:
        jobs = textwrap.indent(script, "    ")
        script = f"def job(_):\n{jobs}\n    return path\n" + (
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(16) as pool:\n    paths = set(map(str, pool.map(job, range(16))))\n"
            "(path,) = paths\n"
        )
    env = environment(**hub.env | {"HF_HUB_DOWNLOAD_TIMEOUT": "60", "HF_HUB_ETAG_TIMEOUT": "60"})
    command = [sys.executable, "-c", script]
    processes = [subprocess.Popen(command, env=env) for _ in range(1 if threads else 4)]
    failed = sum(process.wait(60) != 0 for process in processes)
    fetched = [origin for origin, *_ in hub.log].count("cdn")
    audit = code.format(repo=REPO, cache=str(cache)) + AUDIT.format(cache=str(cache))
    words = describe(client(audit), hashlib.sha256(new).hexdigest())
    return f"{words}; fetched {fetched} times, {failed} failed"


def describe(outcome: Outcome, expected: str) -> str:
    """Return an outcome in words."""
    if outcome.error is not None:
        return f"{outcome.kind}: {' '.join(outcome.error.split())}"
    digest, misnamed = outcome.value
    words = RIGHT if digest == expected else "WRONG BYTES, no error"
    if misnamed:
        words += "; CACHE POISONED: a blob under another content's name"
    ours = [text for text in outcome.warnings if "unclosed" not in text]
    return f"{words}; warning: {ours[0]}" if ours else words
