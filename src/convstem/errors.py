"""Every error of convstem, below one root."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class RegistryError(ValueError):
    """A file of ``registry/`` is wrong; the message names the file and the row."""


class CheckpointError(RuntimeError):
    """A checkpoint does not fit the model; the message names the tensors and says which side lacks or exceeds what."""


class HubError(OSError):
    """A Hub repository cannot be read or written; the message says why and what to do."""


class AccessDeniedError(HubError):
    """The Hub refuses this repository to this user, or to everybody."""


class MissingFileError(HubError):
    """The repository does not have the file, or offline, the cache does not."""


class RevisionMissingError(HubError):
    """The repository is there, the branch, tag or commit is not."""


class UnreachableError(HubError):
    """The Hub does not answer, or only with errors that should pass."""
