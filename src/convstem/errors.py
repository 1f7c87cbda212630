"""Every error that convstem raises for a user, below one root, and warnings that point to the caller's line.

Each class is also the matching builtin one, so both ``except ValueError`` and ``except convstem.ConvStemError`` work.
Any other error from convstem is a bug in convstem.
"""

from __future__ import annotations

import re
import sys
import warnings

# Control characters, line separators and marks of writing direction could control a terminal or reorder text. Lone
# surrogates cannot be printed at all.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, lines: bool = False) -> str:
    """Return a text as one line that is safe to print: characters that control a terminal are escaped as in Python.

    All text from a file or the Hub passes through here before it is printed.

    Args:
        text: the text.
        lines: keep line ends and tabs.
    """

    def escaped(found: re.Match[str]) -> str:
        character = found[0]
        return character if lines and character in "\n\t" else character.encode("unicode_escape").decode()

    return _UNPRINTABLE.sub(escaped, str(text))


class ConvStemError(Exception):
    """The root: the message says what was expected, what arrived and what to do."""

    def __str__(self) -> str:
        """Return the message as one safe line, since it may quote a file."""
        return printable(Exception.__str__(self))


class ArgumentError(ConvStemError, ValueError):
    """An argument has a value that cannot work, alone or together with the others."""


class ArgumentTypeError(ConvStemError, TypeError):
    """An argument has the wrong type, or the function or model does not accept it."""


class UnknownModelError(ConvStemError, KeyError):
    """There is no model or pretrained tag of this name; the message lists the nearest ones."""


class UnsupportedModelError(ConvStemError, TypeError):
    """The operation does not support this kind of model; the message says what was expected and what it has."""


class TransplantError(ConvStemError, ValueError):
    """The transplanted model would be too inaccurate, or could not be loaded again."""


class CheckpointError(ConvStemError, RuntimeError):
    """A checkpoint does not fit the model; the message names the missing, surplus or misshapen tensors."""


class ConversionError(ConvStemError, ValueError):
    """A state dict cannot be converted: it has another layout, is incomplete, or the target
    cannot express the model."""


class DeviceMemoryError(ConvStemError, RuntimeError):
    """A device has no room for the model; memory already taken for it is released."""


class InvalidFileError(ConvStemError, ValueError):
    """A file is damaged or has the wrong content; the message names it."""


class PathError(ConvStemError, OSError):
    """A file or folder cannot be read or written; the message says which and why."""


class MissingPathError(PathError, FileNotFoundError):
    """There is no such file or folder."""


class ExistingPathError(PathError, FileExistsError):
    """The file to be written already exists."""


class MissingPackageError(ConvStemError, ModuleNotFoundError):
    """An optional package is not installed; the message has the command that installs it."""


class RegistryError(ConvStemError, ValueError):
    """A file of ``registry/`` is wrong; the message names the file and the entry."""


class HubError(ConvStemError, OSError):
    """A Hub repository cannot be read or written; the message says why and what to do."""


class AccessDeniedError(HubError):
    """The Hub refuses this repository to this user, or to everybody."""


class MissingFileError(HubError):
    """The repository (offline: the cache) does not have the file."""


class RevisionMissingError(HubError):
    """The repository exists, but the branch, tag or commit does not."""


class UnreachableError(HubError):
    """The Hub does not answer, or only with temporary errors."""


# Frames of these modules are not the caller's: our own, the hosts that call us, and the machinery in between.
_BETWEEN = {"_convstem_autoload", "click", "contextlib", "convstem", "functools", "importlib"}
_BETWEEN |= {"timm", "torch", "torchvision"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the caller's line, the first one outside convstem and its hosts."""
    frame = sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "<string>")  # as in warnings.warn; without a name nothing is shown
    seen = frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(printable(message), category, frame.f_code.co_filename, frame.f_lineno, module, seen)
