"""Files that are deleted from the Hub's cache while they are used: what uses them is done again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from convstem.errors import HubError

TRIES = 5

_GIVEN: ContextVar[list[Path] | None] = ContextVar("_GIVEN", default=None)
"""The files of the cache that the function that runs was given so far."""

Function = TypeVar("Function", bound=Callable[..., Any])


def given(files: Iterable[Path]) -> None:
    """Note files of the cache that are about to be used."""
    noted = _GIVEN.get()
    if noted is not None:
        noted.extend(files)


def again_if_deleted(function: Function) -> Function:
    """Decorate a function that fetches files and uses them: it is called again if they were deleted in between.

    The function raises ``HubError`` if that happens again and again.
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
    """Return what is said of a file of the cache that something else deletes."""
    return (
        f"{path} is deleted from the Hub's cache, again and again, while it is used: stop what clears the cache, or "
        "choose another folder with HF_HUB_CACHE"
    )
