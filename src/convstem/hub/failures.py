"""Failures of the Hub client: retry those that may pass, explain each of the others in one plain sentence.

Files deleted from the Hub's cache while in use are retried too: the function using them runs again.
"""

from __future__ import annotations

import errno
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from convstem.errors import AccessDeniedError, HubError, MissingFileError, RevisionMissingError, UnreachableError

TRIES = 5

_GIVEN: ContextVar[list[Path] | None] = ContextVar("_GIVEN", default=None)
"""Cache files that the running function has been given so far."""

Function = TypeVar("Function", bound=Callable[..., Any])


def given(files: Iterable[Path]) -> None:
    """Note cache files that are about to be used."""
    noted = _GIVEN.get()
    if noted is not None:
        noted.extend(files)


def again_if_deleted(function: Function) -> Function:
    """Decorate a function that fetches and uses files: it runs again if they were deleted in between.

    It raises ``HubError`` if that keeps happening.
    """

    @wraps(function)
    def persistent(*args: Any, **kwargs: Any) -> Any:
        for left in reversed(range(TRIES)):
            noted: list[Path] = []
            before = _GIVEN.set(noted)
            try:
                return function(*args, **kwargs)
            except Exception as error:
                gone = next((path for path in noted if not path.exists()), None)
                if gone is None:
                    raise
                if not left:
                    raise HubError(deleted_again(gone)) from error
            finally:
                _GIVEN.reset(before)
        raise AssertionError("TRIES must be positive")

    return cast("Function", persistent)


def deleted_again(path: object) -> str:
    """Return the message for a cache file that something else keeps deleting."""
    return (
        f"{path} keeps being deleted from the Hub's cache while it is used: stop what clears the cache, or choose "
        "another folder with HF_HUB_CACHE"
    )


ATTEMPTS = 4


WAIT_SECONDS = 0.5
"""Pause before the second try; doubled before each further one."""


Result = TypeVar("Result")


LOGIN = "log in with `hf auth login` or set HF_TOKEN"


# The HTTP library behind huggingface_hub depends on its release. All errors of these packages are transport errors.
_TRANSPORT = {"hf_xet", "httpcore", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}


_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}


_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the cache is read-only",
    errno.EACCES: "the cache may not be written",
    errno.EEXIST: "the cache is not a folder",
    errno.EFBIG: "files cannot be that large here",
    errno.ENOTDIR: "the cache is not a folder",
    errno.EPERM: "the cache may not be written",
}


def without_password(text: str) -> str:
    """Return a text without the user names and passwords in its URLs; ``HF_ENDPOINT`` may hold some."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def web_page(*parts: str) -> str:
    """Return the address of a Hub page, without a password."""
    from huggingface_hub import constants

    return "/".join([without_password(constants.ENDPOINT), *parts])


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_server_error(error: BaseException) -> bool:
    """Return whether the server failed (5xx)."""
    return (status_of(error) or 0) >= 500


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its chain of causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def certificate_error(error: BaseException) -> str:
    """Return why the server's certificate was rejected; empty if that is not the error."""
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return str(getattr(cause, "verify_message", "") or cause)
        told = re.search(r"CERTIFICATE_VERIFY_FAILED\W+certificate verify failed:? ?(.*?) ?(?:\(_ssl|$)", str(cause))
        if told:
            return told[1] or "certificate verify failed"
    return ""


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later.

    True for resets, timeouts, 5xx, short bodies, an expired signed URL and a file deleted from the cache meanwhile.
    """
    if certificate_error(error):
        return False
    response: Any = getattr(error, "response", None)
    if response is not None:
        signed = response.request.method == "GET" and "X-Error-Code" not in response.headers
        expired = signed and response.status_code in (401, 403) and "/api/" not in str(response.request.url)
        return response.status_code in _TRANSIENT_STATUS or expired
    if isinstance(error, (HubError, OfflineModeIsEnabled, HFValidationError)):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)) or _deleted(error):
        return True
    if isinstance(error, OSError) and error.errno in _DISK:
        return False
    return type(error).__module__.partition(".")[0] in _TRANSPORT or (
        isinstance(error, OSError) and error.errno is None  # huggingface_hub's consistency check
    )


def _deleted(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) and error.errno == errno.ENOENT


def root_cause(error: BaseException) -> BaseException:
    """Return the error hidden behind huggingface_hub's ``LocalEntryNotFoundError``."""
    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_of_xet(error: BaseException) -> bool:
    """Return whether a failure comes from Xet's storage. The Hub and its mirrors can send every file without Xet."""
    response: Any = getattr(error, "response", None)
    if response is not None:
        return "/xet-read-token/" in str(response.request.url)
    module = type(error).__module__.partition(".")[0]
    return module == "hf_xet" or type(error) is RuntimeError or (module == "builtins" and "Xet" in str(error))


def retry_after(error: BaseException, seconds: float, longest: float = 30.0) -> float:
    """Return the seconds until the next try: the server's Retry-After, else ``seconds``; at most ``longest``."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return min(float(asked), longest) if asked.isascii() and asked.isdigit() else seconds


def retried(
    ask: Callable[[], Result],
    repo_id: str,
    revision: str | None,
    token: Any,
    attempts: int = ATTEMPTS,
    listed: bool = False,
) -> Result:
    """Return the result of ``ask``, retrying with growing pauses after failures that may pass.

    Args:
        ask: makes a request.
        repo_id, revision, token, listed: see ``explain``.
        attempts: largest number of calls.

    Raises:
        HubError: a permanent failure, or ``attempts`` failures.
    """
    for attempt in range(attempts):
        try:
            return ask()
        except HubError:
            raise
        except Exception as error:
            cause = root_cause(error)
            if attempt + 1 == attempts or not is_transient(cause):
                raise explain(cause, repo_id, revision, token, listed) from cause
            time.sleep(retry_after(cause, WAIT_SECONDS * 2**attempt))
    raise AssertionError("attempts must be positive")


def explain(
    error: BaseException, repo_id: str, revision: str | None, token: Any = None, listed: bool = False
) -> HubError:
    """Return the error to raise: what was requested, what the Hub said, what to do.

    Args:
        error: what huggingface_hub raised.
        repo_id, revision: the requested repository and revision.
        token: the token argument, used only to tell whether there is one.
        listed: whether the Hub has just listed the file it now refuses.
    """
    kind, status = type(error).__name__, status_of(error)
    where = repo_id if revision is None else f"{repo_id}@{revision}"
    if isinstance(error, GatedRepoError):
        return AccessDeniedError(
            f"{repo_id} is gated ({status}): accept its conditions at {web_page(repo_id)}, then {LOGIN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return RevisionMissingError(
            f"{repo_id} has no revision {revision!r} ({status}); check the branch, tag or commit"
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return MissingFileError(f"{where} does not have the requested file ({status})")
    if isinstance(error, DisabledRepoError):
        return AccessDeniedError(f"{repo_id} was disabled by the Hub ({status})")
    if status in (401, 403, 404) and listed:
        return AccessDeniedError(
            f"{web_page()} lists the files of {where} and refuses to send one ({status}): look for a proxy, a firewall "
            "or a mirror in between that keeps it back"
        )
    if status in (401, 403, 404):
        return AccessDeniedError(f"the Hub refuses {where} ({status}): {_access_hint(repo_id, token)}")
    if certificate_error(error):
        return UnreachableError(
            f"the certificate of {web_page()} was not accepted ({certificate_error(error)}), so nothing was fetched: "
            "if a proxy signs connections with its own certificate, name its authority's file with SSL_CERT_FILE "
            "(REQUESTS_CA_BUNDLE for huggingface_hub below 1.0)"
        )
    if _deleted(error):
        return HubError(deleted_again(error.filename or where))  # type: ignore[attr-defined]
    if isinstance(error, OSError) and error.errno in _DISK:
        return HubError(f"cannot store {where}: {_DISK[error.errno]}; HF_HUB_CACHE chooses another folder")
    if isinstance(error, OfflineModeIsEnabled):
        return UnreachableError(f"the Hub is switched off, so {where} was not requested: unset HF_HUB_OFFLINE")
    if is_transient(error):
        return UnreachableError(
            f"no complete answer for {where} from {web_page()} ({kind}{f', {status}' if status else ''}): "
            "check the connection, the proxy settings and HF_ENDPOINT, or try again later"
        )
    return HubError(f"{where}: {kind}: {without_password(str(error))}")


def _access_hint(repo_id: str, token: Any) -> str:
    from huggingface_hub import get_token

    if isinstance(token, str) or (token is not False and get_token()):
        return "it does not exist, or the token in use has no access to it; check the spelling and the token's rights"
    return f"it does not exist, or it is private and no token is set; check the spelling, and {LOGIN}"
