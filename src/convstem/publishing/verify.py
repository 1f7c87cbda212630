"""Examines a model repository or folder: is it complete, undamaged, of our kind, and what its config says it is?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convstem.errors import ConvStemError, HubError, InvalidFileError, MissingPathError
from convstem.files.safetensors import Stored, check_finite_file, check_header
from convstem.hub.config import parts, read_config
from convstem.hub.limits import check_fits_header
from convstem.hub.listing import check_present, list_files
from convstem.hub.read import fetch_all
from convstem.hub.repo_cache import file_digest
from convstem.hub.source import CARD, CONFIG, WEIGHTS, is_path, split_revision
from convstem.publishing.meta_model import meta_model
from convstem.registry.licenses import license_of_card

_KINDS = {True: "floating-point numbers", False: "integers"}


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """What ``verify`` found."""

    source: str
    commit: str | None
    sha256: str | None
    """Of ``model.safetensors``."""
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the report JSON-plain."""
        return {**asdict(self), "ok": self.ok}


def verify(source: str | Path, revision: str | None = None, *, token: str | bool | None = None) -> Report:
    """Examine a Hub repository or a local folder; the model is built without memory, and nothing in it can run.

    Args:
        source: ``org/name``, ``org/name@revision`` or a folder.
        revision: branch, tag or commit.
        token: a token, or False for none; default: huggingface_hub's login.

    Raises:
        HubError: the repository cannot be read.
        MissingPathError: no such folder.
    """
    if Path(source).is_dir():
        return verify_folder(Path(source), str(source))
    repo_id, at = split_revision(str(source))
    if "/" not in repo_id or is_path(str(source)):
        raise MissingPathError(f"{source!s} is neither a folder nor a repository id of the form org/name")
    listing = list_files(repo_id, revision or at, token=token)
    names = [name for name in (CONFIG, WEIGHTS, CARD) if name in listing.files]
    if WEIGHTS not in names:
        check_present(repo_id, listing, WEIGHTS)
    files = fetch_all(repo_id, names, listing.commit, token=token)
    folder = files[WEIGHTS].path.parent
    weights = files[WEIGHTS].sha256
    unknown = [name for name, file in files.items() if not file.compared]
    hashes = Check(
        "hashes",
        not unknown,
        f"{', '.join(unknown)} could not be compared: nobody tells a hash"
        if unknown
        else f"{len(files)} files have the hashes that the Hub lists",
    )
    return verify_folder(folder, f"{repo_id}@{listing.commit}", listing.commit, weights, (hashes,))


def verify_folder(
    folder: Path, source: str, commit: str | None = None, sha256: str | None = None, before: tuple[Check, ...] = ()
) -> Report:
    """Examine a folder with ``config.json``, ``model.safetensors`` and ``README.md``.

    Args:
        folder: what is examined.
        source: what the report calls it.
        commit, sha256: of a repository, the commit, and the hash of its weights; default: the file is hashed.
        before: checks that were made already.
    """
    weights = folder / WEIGHTS
    found: dict[str, Any] = {}
    questions: tuple[tuple[str, Callable[[], str]], ...] = (
        ("header", lambda: _header(weights, found)),
        ("config", lambda: _config(folder / CONFIG, found)),
        ("shapes", lambda: _shapes(found)),
        ("labels", lambda: _labels(found)),
        ("finite", lambda: _finite(weights, found)),
        ("license", lambda: _license(folder / CARD)),
    )
    checks = (*before, *(_answer(name, question) for name, question in questions))
    if sha256 is None and weights.is_file():
        sha256 = file_digest(weights)
    return Report(source, commit, sha256, checks)


def _answer(name: str, question: Callable[[], str]) -> Check:
    try:
        return Check(name, True, question())
    except ConvStemError as error:
        return Check(name, False, str(error))
    except Exception as error:  # whatever timm and torch make of a hostile config
        return Check(name, False, f"{type(error).__name__}: {error}")


def _header(path: Path, found: dict[str, Any]) -> str:
    if not path.is_file():
        raise MissingPathError(f"{path.name} is missing: a config without weights")
    found["header"] = check_header(path)
    return f"{len(found['header'])} tensors, {path.stat().st_size:,} bytes"


def _config(path: Path, found: dict[str, Any]) -> str:
    config = read_config(path)
    cfg, args = parts(config)
    if "header" in found:
        check_fits_header(args, cfg, found["header"])
    found["model"] = meta_model(path.parent)
    found["config"] = config
    return f"{config['architecture']}, {found['model'].num_classes} classes"


def _shapes(found: Mapping[str, Any]) -> str:
    if "model" not in found or "header" not in found:
        raise InvalidFileError("not compared, because the header or the config is wrong")
    expected = {k: Stored(tuple(t.shape), t.is_floating_point()) for k, t in found["model"].state_dict().items()}
    actual: Mapping[str, Stored] = found["header"]
    both = sorted(set(actual) & set(expected))
    wrong = [f"missing {key}" for key in sorted(set(expected) - set(actual))]
    wrong += [f"surplus {key}" for key in sorted(set(actual) - set(expected))]
    wrong += [
        f"{key} is {list(actual[key].shape)}, the config makes it {list(expected[key].shape)}"
        for key in both
        if actual[key].shape != expected[key].shape
    ]
    wrong += [
        f"{key} holds {_KINDS[actual[key].floating]}, the model {_KINDS[expected[key].floating]}"
        for key in both
        if actual[key].floating != expected[key].floating
    ]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InvalidFileError(f"the weights are not those of the config: {'; '.join(wrong[:5])}{more}")
    return f"all {len(expected)} tensors have the shapes of the architecture"


def _labels(found: Mapping[str, Any]) -> str:
    if "config" not in found:
        raise InvalidFileError("not compared, because the config is wrong")
    config = found["config"]
    names = config.get("label_names") or config["pretrained_cfg"].get("label_names") or []
    if names and len(names) != found["model"].num_classes:
        raise InvalidFileError(f"config.json has {len(names)} label_names for {found['model'].num_classes} classes")
    return f"{len(names)} names" if names else "none given"


def _finite(path: Path, found: Mapping[str, Any]) -> str:
    if "header" not in found:
        raise InvalidFileError("not read, because the header is wrong")
    check_finite_file(path)
    return "no NaN, no Inf"


def _license(path: Path) -> str:
    if not path.is_file():
        raise MissingPathError(
            f"{path.name} is missing, so there is no licence: `convstem card FOLDER --license ID > FOLDER/{path.name}` "
            "writes it"
        )
    return license_of_card(path.read_text(encoding="utf-8"), path.name)


def require(report: Report, skip: tuple[str, ...] = ()) -> None:
    """Raise ``HubError`` with every failed check but ``skip``."""
    failed = [f"{check.name}: {check.detail}" for check in report.checks if not check.ok and check.name not in skip]
    if failed:
        raise HubError(f"{report.source} is not a model of convstem's: {'; '.join(failed)}")
