"""The files of a Hub repository that are read, by name."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from convstem.errors import ArgumentError

if TYPE_CHECKING:
    pass


WEIGHTS = "model.safetensors"


CONFIG = "config.json"


CARD = "README.md"


PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".pth.tar")
"""Suffixes of files that run code when they are opened; never read from the Hub."""


def check_filename(filename: str) -> None:
    """Raise ``ValueError`` unless this is a plain path of a file that is safe to read from the Hub."""
    path = PurePosixPath(filename)
    plain = filename == str(path) and not path.is_absolute() and ".." not in path.parts and "\\" not in filename
    if not plain or (path.suffix != ".safetensors" and filename not in (CARD, CONFIG)):
        raise ArgumentError(
            f"from the Hub only {CARD}, {CONFIG} and *.safetensors are read, by a plain relative path; got {filename!r}"
        )
