"""What the file system says against a path of the user's becomes one of our errors."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convstem.errors import ConvStemError, MissingPathError, PathError

_REMEDIES = {
    errno.EACCES: "change its permissions, or name another path",
    errno.EDQUOT: "free some space, or name a path on another disk",
    errno.ENOENT: "check the path, and create its folder first",
    errno.ENOSPC: "free some space, or name a path on another disk",
    errno.ENOTDIR: "a file is in the place of one of its folders",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "name a path on another disk",
}


def readable(path: str | os.PathLike[str]) -> str:
    """Return a path as text that can be written everywhere; bytes that are no UTF-8 become question marks."""
    return os.fsencode(path).decode("utf-8", "replace").replace("\N{REPLACEMENT CHARACTER}", "?")


@contextmanager
def path_errors(doing: str, path: str | Path) -> Iterator[None]:
    """Raise ``PathError`` for what the file system refuses inside.

    Args:
        doing: what is tried, for the message, such as ``read`` or ``write``.
        path: the file or folder that the user named.
    """
    from safetensors import SafetensorError  # imports numpy

    try:
        yield
    except ConvStemError:
        raise
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number is None and not isinstance(error, OSError):
            raise
        kind = MissingPathError if number == errno.ENOENT else PathError
        reason = os.strerror(number) if number else str(error)
        raise kind(f"cannot {doing} {path}: {reason}; {_REMEDIES.get(number or 0, 'name another path')}") from error


def _error_number(error: Exception) -> int | None:
    """Return an error's number; safetensors, which is written in Rust, has it in its message."""
    number: int | None = getattr(error, "errno", None)
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if number is None and told else number
