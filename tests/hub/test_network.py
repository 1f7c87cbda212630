# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""Obstacles between us and the Hub: certificates, proxies, Xet's storage, other processes, unusual files."""

import http.server
import os
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from filelock import FileLock
from huggingface_hub.errors import EntryNotFoundError

from convstem.errors import MissingFileError, UnreachableError
from convstem.hub.failures import (
    certificate_error,
    explain,
    is_of_xet,
    is_server_error,
    is_transient,
    retried,
    retry_after,
)
from tests.support.hub_server import Client, Fault, HubServer, run_python
from tests.support.hub_server.fixtures import REPO, cache, client, hub, repo, server  # noqa: F401

ONE = b"one" * 50_000
FETCH = "from convstem.hub.read import fetch\nfile = fetch('org/m', cache_dir={cache!r})\nresult = str(file.path)"


def head(**fault: Any) -> Fault:
    return Fault(origin="hub", method="HEAD", path="/resolve/", times=99, **fault)


@pytest.mark.parametrize(
    ("header", "seconds"), [("3", 3.0), ("999", 30.0), ("²", 0.5), ("٣", 0.5), ("-1", 0.5), ("", 0.5), ("Wed, 21", 0.5)]
)
def test_retry_after(header: str, seconds: float) -> None:
    error: Any = RuntimeError()
    error.response = SimpleNamespace(headers={"Retry-After": header})
    assert retry_after(error, 0.5) == seconds


def chained(*errors: BaseException) -> BaseException:
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def answered(status: int, method: str = "GET", url: str = "https://cdn/file", **headers: str) -> BaseException:
    error: Any = RuntimeError()
    request = SimpleNamespace(method=method, url=url)
    error.response = SimpleNamespace(status_code=status, request=request, headers=headers)
    return cast(BaseException, error)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError(104, "reset"), True),
        (TimeoutError(110, "timed out"), True),
        (PermissionError(13, "denied"), False),
        (ValueError("x"), False),
        (answered(503), True),
        (answered(404), False),
        (answered(403), True),  # a signed address that has expired
        (answered(403, method="HEAD"), False),
        (answered(403, url="https://hub/api/models/org/m"), False),
        (answered(403, **{"X-Error-Code": "GatedRepo"}), False),
    ],
)
def test_what_is_tried_again(error: BaseException, again: bool) -> None:
    assert is_transient(error) is again
    assert is_server_error(error) is (getattr(getattr(error, "response", None), "status_code", 0) == 503)


def test_a_file_that_the_hub_does_not_have() -> None:
    error: Any = EntryNotFoundError.__new__(EntryNotFoundError)  # its arguments depend on the release
    error.response = SimpleNamespace(status_code=404)
    said = explain(error, "org/m", "v2", None)
    assert isinstance(said, MissingFileError)
    assert str(said) == "org/m@v2 does not have the requested file (404)"


def test_a_certificate_is_found_behind_the_client_s_errors() -> None:
    refused = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    told = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1000)"
    assert certificate_error(chained(ConnectionError("no"), OSError("no"), refused))
    assert certificate_error(ConnectionError(told)) == "self-signed certificate"
    assert not certificate_error(chained(ConnectionError("no"), TimeoutError()))
    assert is_transient(ConnectionError("no")) and not is_transient(ConnectionError(told))
    loop = ValueError("a")
    loop.__context__ = chained(ValueError("b"), loop)
    assert not certificate_error(loop)


def test_errors_keep_their_cause() -> None:
    cause = ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unknown ca (_ssl.c:1)")
    tries: list[int] = []

    def ask() -> None:
        tries.append(1)
        raise cause

    with pytest.raises(UnreachableError, match="SSL_CERT_FILE") as caught:
        retried(ask, "org/m", None, None)
    assert caught.value.__cause__ is cause
    assert len(tries) == 1


@pytest.fixture
def own_authority(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address and certificate file of an HTTPS server with a self-signed certificate."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    more = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*map(str, command), *more], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        tries = 0

        def handle_error(self, *_: Any) -> None:
            self.tries += 1

    quiet = Quiet(("127.0.0.1", 0), Handler)
    quiet.socket = context.wrap_socket(quiet.socket, server_side=True)
    threading.Thread(target=quiet.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{quiet.server_port}", certificate
    quiet.shutdown()
    quiet.server_close()


@pytest.mark.full
def test_an_unknown_authority(own_authority: tuple[str, Path], tmp_path: Path) -> None:
    endpoint, certificate = own_authority
    env = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "cache")}
    code = "from convstem.hub.read import fetch\nfetch('org/m')"
    start = time.monotonic()
    refused = run_python(code, **env)
    assert f"the certificate of {endpoint} was not accepted (self" in refused.stderr
    assert "SSL_CERT_FILE" in refused.stderr.splitlines()[-1]
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr  # the cause, in the traceback
    assert time.monotonic() - start < 60
    trusted = run_python(code, **env, SSL_CERT_FILE=str(certificate), REQUESTS_CA_BUNDLE=str(certificate))
    assert "AccessDeniedError: the Hub refuses org/m (404)" in trusted.stderr  # now it answers


def test_a_file_that_was_listed_and_is_refused(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str]
) -> None:
    repo({"model.safetensors": ONE})
    hub.arm(head(status=403), Fault(origin="hub", path="/resolve/", status=403, times=99))
    outcome = client(FETCH.format(cache=cache))
    assert outcome.kind == "AccessDeniedError"
    assert re.search(r"lists the files of org/m@\w+ and refuses to send one \(403\): look for a proxy", outcome.error)
    assert "does not exist" not in outcome.error


@pytest.fixture(scope="module")
def xet_client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client that uses Xet's storage."""
    env = {**server.env, "HF_HUB_DISABLE_XET": "0"}
    process = Client(**env, HF_HOME=str(tmp_path_factory.mktemp("home")), HF_TOKEN="writer")
    yield process
    process.close()


@pytest.mark.parametrize("told", [True, False], ids=["hashes", "no hashes"])
def test_a_mirror_that_names_xet_s_storage_and_has_no_way_to_it(
    hub: HubServer, xet_client: Client, cache: str, repo: Callable[..., str], told: bool
) -> None:
    pytest.importorskip("hf_xet")  # the oldest supported client does not need it
    repo({"model.safetensors": ONE})
    hub.silent = not told
    route = f"{hub.api.url}/api/models/{REPO}/xet-read-token/main"
    names = (("X-Xet-Hash", "a" * 64), ("X-Xet-Refresh-Route", route))
    hidden = () if told else ("X-Linked-Etag", "ETag")
    hub.arm(head(replace=names if told else (*names, ("ETag", '"none"')), hide=hidden[:1]))
    stock = "from huggingface_hub import hf_hub_download\n"
    stock += f"hf_hub_download('org/m', 'model.safetensors', cache_dir={cache + 'stock'!r})"
    assert xet_client(stock).kind == "HfHubHTTPError"  # negative control
    outcome = xet_client(FETCH.format(cache=cache))
    assert outcome.error is None, outcome.error
    assert Path(outcome.value).read_bytes() == ONE
    assert xet_client("import huggingface_hub.constants as c\nresult = c.HF_HUB_DISABLE_XET").value is False


def test_whose_failure_it_is() -> None:
    def answered(url: str) -> Any:
        error: Any = OSError("no")
        error.response = SimpleNamespace(request=SimpleNamespace(url=url))
        return error

    assert is_of_xet(answered("https://hub/api/models/org/m/xet-read-token/main"))
    assert is_of_xet(RuntimeError("Task error: File reconstruction error: CAS Client Error"))  # from hf_xet's Rust code
    assert is_of_xet(ValueError("Xet headers have not been correctly set by the server."))
    assert not is_of_xet(answered("https://hub/org/xet-model/resolve/main/model.safetensors"))
    assert not is_of_xet(FileNotFoundError(2, "No such file", "xet"))
    assert not is_of_xet(ConnectionError("reset"))


def test_a_lock_that_another_process_holds_is_named(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str]
) -> None:
    repo({"model.safetensors": ONE})
    client("import convstem.files.paths as l\nl.PATIENCE = 0.5")
    client(FETCH.format(cache=cache))
    (lock,) = Path(cache).glob(".locks/models--org--m/*.convstem.lock")
    shutil.rmtree(Path(cache) / "models--org--m")
    other = FileLock(lock, thread_local=False)
    other.acquire()
    threading.Timer(2, other.release).start()
    code = "import logging, io\nsaid = io.StringIO()\nhandler = logging.StreamHandler(said)\n"
    code += "logging.getLogger('convstem').addHandler(handler)\n"
    outcome = client(code + FETCH.format(cache=cache) + "\nresult = [result, said.getvalue()]")
    assert outcome.error is None, outcome.error
    assert Path(outcome.value[0]).read_bytes() == ONE
    assert (
        f"Waiting for another process, which downloads model.safetensors of org/m; it holds {lock}" in outcome.value[1]
    )


@pytest.mark.parametrize("kind", ["pipe", "device", "blob is a pipe", "ref is a pipe", "elsewhere"])
def test_what_is_no_file_in_a_snapshot_is_not_read_for_ever(
    kind: str, hub: HubServer, client: Client, cache: str, repo: Callable[..., str], tmp_path: Path
) -> None:
    repo({"model.safetensors": ONE})
    path = Path(client(FETCH.format(cache=cache)).value)
    blob, ref = path.resolve(), Path(cache) / "models--org--m" / "refs" / "main"
    elsewhere = tmp_path / "mine"
    elsewhere.write_bytes(b"not the model")
    for file in {"blob is a pipe": [blob], "ref is a pipe": [ref]}.get(kind, [path]):
        file.unlink()
        if kind in ("device", "elsewhere"):
            file.symlink_to("/dev/zero" if kind == "device" else elsewhere)
        else:
            os.mkfifo(file)
    outcome = client(FETCH.format(cache=cache))
    assert outcome.error is None, outcome.error
    assert Path(outcome.value).read_bytes() == ONE
    assert elsewhere.read_bytes() == b"not the model"  # a link's target is not ours to remove
    assert Path("/dev/zero").exists()
