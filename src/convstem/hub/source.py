"""Parses what a user gives as a source: a model's name, a Hub repository, a folder or a file.

Only the spelling and this machine's disk decide, never the network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from convstem.errors import ArgumentError, ArgumentTypeError, MissingPathError

WEIGHTS = "model.safetensors"


CONFIG = "config.json"


CARD = "README.md"


FILES = (CONFIG, WEIGHTS, CARD)
"""Files of a model's folder or repository."""


EVALUATION = ".eval_results/convstem.yaml"
"""A repository's measured metrics. The Hub shows them beside those in the card."""


PREPROCESSING = "preprocessor_config.json"
"""transformers' file with mean and std."""


LARGEST_TEXT = 16 << 20
"""Largest config or card in bytes."""


PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".pth.tar")
"""Suffixes of files that can run code when opened; never read from the Hub."""


_SUFFIXES = (".npz", ".pyth", ".safetensors", ".tar", *PICKLES)
"""A name with one of these suffixes can only be a file."""


_SCHEME = re.compile(r"([A-Za-z][\w+.-]+):")  # two letters at least: C: is a drive


Kind: TypeAlias = Literal["name", "repository", "folder", "file"]


_IN_WORDS: Mapping[Kind, str] = {
    "name": "the name of a model",
    "repository": "a Hub repository org/name",
    "folder": f"a folder with {CONFIG} and {WEIGHTS}",
    "file": "a checkpoint file",
}


TAKES: Mapping[str, tuple[Kind, ...]] = {
    "card": ("name", "repository", "folder"),
    "convert": ("repository", "folder", "file"),
    "export": ("name", "repository", "folder"),
    "fold": ("name", "repository", "folder"),
    "load": ("name", "repository", "folder"),
    "pull": ("name", "repository"),
    "push": ("folder", "file"),
    "show": ("name",),
    "transplant": ("name", "repository", "folder"),
    "verify": ("name", "repository", "folder"),
}
"""Kinds of source that each verb takes, in the library and on the command line."""


_CONVERT = "`convstem convert {0} --out FOLDER` makes such a folder"


_PULL = "`convstem pull {0} --out FOLDER` makes a folder that can be pushed"


_CARD = "`convstem card {0}` describes its model"


_REMEDIES: Mapping[tuple[str, Kind], str] = {
    (
        "convert",
        "name",
    ): "convstem.load takes convstem's names, `convstem transplant` timm's",
    ("pull", "file"): "`convstem convert {0} --out FOLDER` makes a folder of it",
    ("pull", "folder"): "it is already on this machine; `convstem verify {0}` checks it",
    ("push", "name"): _PULL,
    ("push", "repository"): _PULL,
    ("show", "file"): "`convstem convert {0} --out FOLDER` finds out what it is",
    ("show", "folder"): _CARD,
    ("show", "repository"): _CARD,
    ("transplant", "file"): "`convstem convert {0} --out FOLDER --transplant` converts and transplants it",
}
"""Remedy for each kind of source that a verb does not take; default: ``_CONVERT``."""


@dataclass(frozen=True)
class Source:
    """A parsed source."""

    text: str
    """As written, for messages."""
    kind: Kind
    name: str = ""
    """For a name: with its tag, ours or timm's, known or not."""
    repo_id: str = ""
    revision: str | None = None
    """For a repository: a branch, tag or commit; None is the newest commit."""
    path: Path = Path()
    """For a folder or file: ``~`` expanded, present or not."""

    def __str__(self) -> str:
        """Return the text as written."""
        return self.text

    @property
    def short(self) -> str:
        """The source as a card names it, without this machine's paths."""
        return self.name or self.repo_id or self.path.absolute().name


def resolve(source: str | os.PathLike[str], disk: bool = True) -> Source:
    """Parse a source by its spelling. An existing path wins over a name or repository of the same spelling.

    Args:
        source: ``name``, ``name.tag``, ``org/name`` or ``hf-hub:org/name`` (optionally with ``@revision``),
            ``local-dir:FOLDER``, or a path.
        disk: False if paths are not accepted; then the disk is not searched.

    Raises:
        ArgumentError: empty, an unknown scheme, or an invalid repository name.
        ArgumentTypeError: neither text nor a path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentTypeError(f"a source is {_WAYS}; got a {type(source).__name__}")
    text = os.fspath(source)
    found = _SCHEME.match(text)
    scheme = found[1].replace("hf_hub", "hf-hub") if found else ""  # timm's older spelling
    place = text[len(scheme) + 1 :] if scheme in ("hf-hub", "local-dir") else text
    if not place.strip():
        raise ArgumentError(f"a source is {_WAYS}; got {text!r}")
    if scheme == "local-dir" or isinstance(source, os.PathLike) or (disk and os.path.exists(os.path.expanduser(text))):
        return _on_disk(text, place)
    if scheme == "hf-hub":
        return _on_hub(text, place)
    if scheme:
        raise ArgumentError(f"{text} begins with {scheme}:, which is not a known scheme; a source is {_WAYS}")
    if is_path(text):
        return _on_disk(text, text)
    return _on_hub(text, text) if "/" in text else Source(text, "name", name=text)


_WAYS = "the name of a model, org/name or hf-hub:org/name with or without @revision, local-dir:FOLDER, or a path"


def _on_disk(text: str, place: str) -> Source:
    path = Path(os.path.expanduser(place))
    is_file = os.path.isfile(path) or (place.endswith(_SUFFIXES) and not os.path.isdir(path))
    return Source(text, "file" if is_file else "folder", path=path)


def _on_hub(text: str, place: str) -> Source:
    repo_id, revision = split_revision(place)
    check_repo_id(repo_id)
    return Source(text, "repository", repo_id=repo_id, revision=revision)


def source_of(verb: str, source: str | os.PathLike[str] | Source) -> Source:
    """Parse a source and check that the verb takes it.

    Args:
        verb: one of ``TAKES``.
        source: what the user wrote, or a parsed source.

    Raises:
        ArgumentError: the verb does not take this kind of source, or see ``resolve``.
        ArgumentTypeError: neither text nor a path.
        MissingPathError: the path does not exist.
    """
    disk = not {"folder", "file"}.isdisjoint(TAKES[verb])
    found = source if isinstance(source, Source) else resolve(source, disk)
    if found.kind in ("folder", "file") and not os.path.exists(found.path):
        raise MissingPathError(f"there is no file or folder {found.path}: {verb} takes {_taken(verb)}")
    if found.kind not in TAKES[verb]:
        remedy = _REMEDIES.get((verb, found.kind), _CONVERT).format(found.path if found.kind == "file" else found)
        absent = " (there is no file or folder of this name)" if disk and found.kind in ("name", "repository") else ""
        raise ArgumentError(f"{found} is a {found.kind}{absent}, but {verb} takes {_taken(verb)}. {remedy}")
    return found


def _taken(verb: str) -> str:
    """Return the kinds of source that a verb takes, in words."""
    *others, last = (_IN_WORDS[kind] for kind in TAKES[verb])
    if len(others) < 2:
        return " or ".join([*others, last])
    return f"{', '.join(others)}, or {last}"


def is_path(source: str) -> bool:
    """Return whether a source can only be a path, not a repository."""
    name = source.partition("@")[0]
    spelt = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    return spelt or source.endswith(_SUFFIXES)


def split_revision(name: str) -> tuple[str, str | None]:
    """Return the repository and revision in ``org/name@revision``, with or without timm's ``hf-hub:`` prefix.

    Without a revision it is None: the newest commit.
    """
    repo_id, _, revision = name.removeprefix("hf-hub:").partition("@")
    return repo_id, revision or None


def check_repo_id(repo_id: str) -> None:
    """Raise ``ArgumentError`` unless this is a valid name for a Hub repository."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ArgumentError(f"a Hub repository is named org/name; got {repo_id!r}. {error}") from error


def check_filename(filename: str) -> None:
    """Raise ``ArgumentError`` unless this is a plain relative path of a file that is safe to read from the Hub."""
    path = PurePosixPath(filename)
    plain = filename == str(path) and not path.is_absolute() and ".." not in path.parts and "\\" not in filename
    if not plain or (path.suffix != ".safetensors" and filename not in (CARD, CONFIG, PREPROCESSING)):
        raise ArgumentError(
            f"only {CARD}, {CONFIG} and *.safetensors are read from the Hub, by plain relative paths; got {filename!r}"
        )
