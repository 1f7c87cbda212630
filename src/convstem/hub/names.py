"""The files of a Hub repository that are read, by name."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from convstem.errors import ArgumentError

WEIGHTS = "model.safetensors"


CONFIG = "config.json"


CARD = "README.md"


PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".pth.tar")
"""Suffixes of files that run code when they are opened; never read from the Hub."""


def is_path(source: str) -> bool:
    """Tell whether a name can only mean a path on this machine, and no repository."""
    name = source.partition("@")[0]
    spelt = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    return spelt or source.endswith((".safetensors", *PICKLES)) or Path(source).is_file()


def split_revision(name: str) -> tuple[str, str | None]:
    """Return repository and revision of ``org/name@revision``, with timm's ``hf-hub:`` before it or not.

    The revision is None where none is given: the newest commit is meant.
    """
    repo_id, _, revision = name.removeprefix("hf-hub:").partition("@")
    return repo_id, revision or None


def check_repo_id(repo_id: str) -> None:
    """Raise ``ArgumentError`` unless the Hub could have a repository of this name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ArgumentError(f"a repository of the Hub is named org/name; got {repo_id!r}. {error}") from error


def check_filename(filename: str) -> None:
    """Raise ``ArgumentError`` unless this is a plain path of a file that is safe to read from the Hub."""
    path = PurePosixPath(filename)
    plain = filename == str(path) and not path.is_absolute() and ".." not in path.parts and "\\" not in filename
    if not plain or (path.suffix != ".safetensors" and filename not in (CARD, CONFIG)):
        raise ArgumentError(
            f"from the Hub only {CARD}, {CONFIG} and *.safetensors are read, by a plain relative path; got {filename!r}"
        )
