"""Checks a model repository or folder: complete, undamaged, one of our models, consistent with its config."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convstem.errors import ConvStemError, HubError, InvalidFileError, MissingPathError, printable
from convstem.files.safetensors import check_finite_file, check_header
from convstem.files.staging import scratch_folder
from convstem.hosts.describe import find_weights
from convstem.hub.config import parts, read_config, read_text
from convstem.hub.failures import again_if_deleted
from convstem.hub.limits import check_fits_header
from convstem.hub.read import fetch_all
from convstem.hub.repo_cache import check_present, file_digest, list_files
from convstem.hub.source import CARD, CONFIG, WEIGHTS, source_of
from convstem.layouts.comparison import differences
from convstem.publishing.folder import meta_model
from convstem.publishing.pull import write_embedded
from convstem.registry.licenses import license_of_card


@dataclass(frozen=True)
class Check:
    """One check and its result."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """The result of ``verify``."""

    source: str
    commit: str | None
    sha256: str | None
    """Hash of ``model.safetensors``."""
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {**asdict(self), "ok": self.ok}


def verify(source: str | os.PathLike[str], revision: str | None = None, *, token: str | bool | None = None) -> Report:
    """Check a Hub repository, a local folder or the weights of a name; no code in them is run.

    The model is built on the meta device, without memory. For weights that are transplanted or converted on loading,
    only the source file is checked, since it has another architecture or layout.

    Args:
        source: ``org/name``, ``org/name@revision``, a folder, or a name that ``convstem list --pretrained`` prints.
        revision: branch, tag or commit.
        token: a token, or False for none; default: huggingface_hub's login.

    Raises:
        ArgumentError: the wrong kind of source.
        HubError: the repository cannot be read.
        MissingPathError: no such folder.
        UnknownModelError: unknown name.
    """
    found = source_of("verify", source)
    if found.kind == "folder":
        return verify_folder(found.path, str(source))
    if found.kind == "repository":
        return _verify_repository(found.repo_id, revision or found.revision, token)
    entry = find_weights(found.name)
    if entry.file:
        with scratch_folder(Path(tempfile.gettempdir()), "convstem-verify-") as folder:
            write_embedded(entry, folder)
            return verify_folder(folder, entry.name)
    repo_id, at = entry.hub_name
    return _verify_repository(repo_id, revision or at, token, ours=entry.transform == "none")


@again_if_deleted
def _verify_repository(repo_id: str, revision: str | None, token: Any, ours: bool = True) -> Report:
    listing = list_files(repo_id, revision, token=token)
    names = [name for name in (CONFIG, WEIGHTS, CARD) if name in listing.files]
    check_present(repo_id, listing, WEIGHTS)
    files = fetch_all(repo_id, names, listing.commit, token=token)
    folder, weights = files[WEIGHTS].path.parent, files[WEIGHTS].sha256
    unknown = [name for name, file in files.items() if not file.compared]
    hashes = Check(
        "hashes",
        not unknown,
        f"{', '.join(unknown)} could not be compared: no hash is known"
        if unknown
        else f"{len(files)} files have the hashes that the Hub lists",
    )
    return verify_folder(folder, f"{repo_id}@{listing.commit}", listing.commit, weights, (hashes,), ours)


def verify_folder(
    folder: Path,
    source: str,
    commit: str | None = None,
    sha256: str | None = None,
    before: tuple[Check, ...] = (),
    ours: bool = True,
) -> Report:
    """Check a folder with ``config.json``, ``model.safetensors`` and ``README.md``.

    Args:
        folder: the folder.
        source: its name in the report.
        commit, sha256: a repository's commit and the hash of its weights; default: the file is hashed.
        before: checks already made.
        ours: False for weights of another architecture or layout: then only the weights file is checked.
    """
    weights = folder / WEIGHTS
    found: dict[str, Any] = {}
    questions: dict[str, Callable[[], str]] = {
        "header": lambda: _header(weights, found),
        "config": lambda: _config(folder / CONFIG, found),
        "shapes": lambda: _shapes(found),
        "labels": lambda: _labels(found),
        "finite": lambda: _finite(weights, found),
        "license": lambda: _license(folder / CARD),
    }
    asked = questions if ours else ("header", "finite")
    checks = (*before, *(_answer(name, questions[name]) for name in asked))
    if sha256 is None and weights.is_file():
        sha256 = file_digest(weights)
    return Report(source, commit, sha256, checks)


def _answer(name: str, question: Callable[[], str]) -> Check:
    try:
        return Check(name, True, question())
    except ConvStemError as error:
        return Check(name, False, str(error))
    except Exception as error:  # timm and torch may raise anything for a hostile config
        return Check(name, False, printable(f"{type(error).__name__}: {error}"))


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
    expected = found["model"].state_dict()
    wrong = differences(found["header"], expected)
    if wrong:
        raise InvalidFileError(f"the weights do not fit the config: {wrong}")
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
    return license_of_card(read_text(path), path.name)


def require(report: Report, skip: tuple[str, ...] = ()) -> None:
    """Raise ``HubError`` listing every failed check except those in ``skip``."""
    failed = [f"{check.name}: {check.detail}" for check in report.checks if not check.ok and check.name not in skip]
    if failed:
        raise HubError(f"{report.source} is not a convstem model: {'; '.join(failed)}")
