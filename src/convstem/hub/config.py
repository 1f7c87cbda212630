"""timm's ``config.json``, checked because it may come from anybody, and the origin of weights that it records.

Each step (loaded, transplanted, ...) is a note in timm's ``pretrained_cfg``, which every save and load keeps. Only
known steps are noted, and later changes to a model in memory are not: a note says where weights started.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from convstem.errors import InvalidFileError, MissingPathError, UnsupportedModelError
from convstem.hub.limits import check_config_sizes, check_kinds, fits, short, stated_sizes
from convstem.hub.source import LARGEST_TEXT
from convstem.registry import catalog
from convstem.registry.records import POS_EMBEDS
from convstem.registry.stem_spec import StemSpec
from convstem.registry.tables import PYRAMID, families, rows, trunks

LOADED = "made from"
SCRATCH = "trained from scratch"
TRANSPLANTED = "transplanted from"
TUNED = "fine-tuned from"

_PREFIX = "convstem: "

_SOURCE = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?|", re.ASCII)
"""A source as our notes write it. A note with any other text is not ours and never reaches a card."""


@dataclass(frozen=True)
class Step:
    """One step in the life of weights."""

    what: str
    """``LOADED``, ``SCRATCH``, ``TRANSPLANTED`` or ``TUNED``."""
    source: str = ""
    """A repository (``org/name``, with ``@commit`` if known) or a pretrained name; empty if there is none."""

    @property
    def repo_id(self) -> str | None:
        """The source's repository, or None if it is a name."""
        return self.source.partition("@")[0] if "/" in self.source else None

    def __str__(self) -> str:
        """Return the step as text."""
        source, _, commit = self.source.partition("@")
        return f"{self.what} {source}".strip() + (f" at commit {commit}" if commit else "")


def steps(cfg: Mapping[str, Any]) -> tuple[Step, ...]:
    """Return the steps that a pretrained cfg records, oldest first."""
    notes = [note for note in cfg.get("notes") or () if isinstance(note, str) and note.startswith(_PREFIX)]
    return tuple(step for note in notes if (step := _parse(note.removeprefix(_PREFIX))))


def record(model: Any, new: Iterable[Step]) -> None:
    """Replace the steps recorded in a model; other notes stay."""
    cfg = model.pretrained_cfg
    others = [note for note in cfg.get("notes") or () if not str(note).startswith(_PREFIX)]
    ours = [f"{_PREFIX}{step.what} {step.source}".rstrip() for step in new]
    kept = {key: value for key, value in cfg.items() if key != "notes"}
    notes = {"notes": (*others, *ours)} if others or ours else {}
    model.pretrained_cfg = model.default_cfg = {**kept, **notes}


def forget(model: Any) -> None:
    """Remove the steps, description and licence of weights that a model does not have."""
    record(model, ())
    for field in ("description", "license"):
        model.pretrained_cfg.pop(field, None)


def add(model: Any, step: Step) -> None:
    """Record one more step in a model."""
    record(model, (*steps(model.pretrained_cfg), step))


def _parse(note: str) -> Step | None:
    found = (Step(what, note.removeprefix(what).strip()) for what in (LOADED, SCRATCH, TRANSPLANTED, TUNED))
    return next((step for step in found if note.startswith(step.what) and _SOURCE.fullmatch(step.source)), None)


FORBIDDEN = ("checkpoint_path", "custom_load", "file", "hf_hub_filename", "hf_hub_id", "state_dict", "url")
"""Fields that a config may not set: its weights lie beside it."""


_WIDER: dict[str, Any] = {
    "classifier": str | list[str] | None,
    "first_conv": str | list[str] | None,
    "label_names": list[str] | dict[str, str] | None,
}
"""Fields with wider types in timm's own cfgs than in its annotations."""


INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "nearest-exact", "random")


# Field of pretrained_cfg -> (valid values in words, a test of them), beside its type. timm has a default for each.
_PREPROCESSING: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "crop_pct": ("a number above 0 and at most 2", lambda value: 0 < value <= 2),
    "input_size": ("channels, height and width in pixels", lambda value: min(value) > 0),
    "interpolation": (f"one of {', '.join(INTERPOLATIONS)}", lambda value: value in INTERPOLATIONS),
    "mean": ("a list of numbers", bool),
    "std": ("a list of numbers above 0", lambda value: bool(value) and min(value) > 0),
}


def read_config(path: Path) -> dict[str, Any]:
    """Return a ``config.json`` of one of our architectures, checked as far as possible without building the model.

    Raises:
        InvalidFileError: not a config, weight locations in it, contradictory fields or ones unknown to timm,
            impossible preprocessing, or sizes beyond reason.
        MissingPathError: no such file.
        UnsupportedModelError: another architecture.
    """
    config = read_json(path)
    cfg, args = parts(config)
    check_ours(config["architecture"])
    named = sorted({*FORBIDDEN} & {key for table in (cfg, args) for key, value in table.items() if value})
    if named:
        raise InvalidFileError(f"{path.name} must not say where weights are or how to load them: {', '.join(named)}")
    check_stated(config["architecture"], cfg, args)
    _check_classes({"the root": config, "pretrained_cfg": config["pretrained_cfg"], "model_args": args})
    return config


def parts(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a config's ``pretrained_cfg`` (with classes and labels from the root) and its ``model_args``.

    Raises:
        InvalidFileError: one of them is missing or of the wrong type.
    """
    kinds = {"architecture": str, "pretrained_cfg": dict, "model_args": dict}
    found = {"model_args": {}, **config}
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    if wrong and "model_type" in config:
        raise InvalidFileError(
            "config.json is from transformers; expected timm's: `convstem convert FOLDER --out NEW` converts the "
            "model; with --transplant it gets a conv stem"
        )
    if wrong:
        raise InvalidFileError(f"config.json is not timm's: {', '.join(wrong)} is missing or of the wrong type")
    root = ("num_classes", "label_names", "label_descriptions")
    stated = {name: config[name] for name in root if name in config}
    return {**found["pretrained_cfg"], **stated}, found["model_args"]


def check_stated(architecture: str, cfg: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Raise ``InvalidFileError`` unless a config's fields are known and have the right types and values.

    Args:
        architecture: timm name.
        cfg: the config's ``pretrained_cfg``, with classes and labels from the root.
        args: its ``model_args``.
    """
    from timm.models import PretrainedCfg

    known = {**get_type_hints(PretrainedCfg), **_WIDER}
    unknown = sorted(set(cfg) - set(known))
    if unknown:
        raise InvalidFileError(
            f"config.json: timm does not know {', '.join(unknown)} in pretrained_cfg, so it cannot load"
        )
    for name, (expected, accepts) in _PREPROCESSING.items():
        if name in cfg and not (fits(cfg[name], known[name]) and accepts(cfg[name])):
            raise InvalidFileError(f"config.json: {name} must be {expected}; got {short(cfg[name])}")
    check_kinds({name: value for name, value in cfg.items() if name not in FORBIDDEN}, known)
    check_model_args(architecture, args)
    check_config_sizes(stated_sizes(args, cfg))
    _check_heads(architecture, args)
    _check_classes({"pretrained_cfg": cfg, "model_args": args})


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a small JSON file.

    Raises:
        InvalidFileError: too large, or not a JSON object.
        MissingPathError: no such file.
    """
    if not path.is_file():
        raise MissingPathError(
            f"{path.parent} has no {path.name}; `convstem convert FILE --out FOLDER`, `convstem pull` and "
            "timm.models.save_for_hf write it beside a model's weights"
        )
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidFileError(f"{path.name} is not a config: expected a JSON object, got a {type(content).__name__}")
    return content


def read_text(path: Path) -> str:
    """Return a small text file in UTF-8, or in UTF-16 with a byte order mark, as PowerShell's ``>`` writes it.

    Raises:
        InvalidFileError: too large, or another encoding.
    """
    if path.stat().st_size > LARGEST_TEXT:
        raise InvalidFileError(f"{path.name} is {path.stat().st_size:,} bytes; at most {LARGEST_TEXT:,} are read")
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InvalidFileError(
            f"{path.name} is not UTF-8 text: byte {error.start:,} cannot be read. Save it as UTF-8"
        ) from error


def check_ours(architecture: str) -> None:
    """Raise ``UnsupportedModelError`` unless this is one of our conv-stem architectures."""
    if architecture in catalog.architectures() or architecture.removesuffix(PYRAMID) in families():
        return
    raise UnsupportedModelError(
        f"expected a conv-stem architecture of convstem, got {architecture!r}: {catalog.unknown_name(architecture)}. "
        "A patchify ViT becomes one with `convstem transplant` or convstem.transplant"
    )


def _check_heads(architecture: str, args: Mapping[str, Any]) -> None:
    """Raise ``InvalidFileError`` unless num_heads divides embed_dim; some models fail only at their first image."""
    spec = catalog.architectures().get(architecture)
    width, heads = (args.get(name) or getattr(spec, name, 0) for name in ("embed_dim", "num_heads"))
    if width and heads and width % heads:
        raise InvalidFileError(f"config.json: embed_dim must be a multiple of num_heads; got {width} and {heads}")


def _check_classes(tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ``InvalidFileError`` if parts of a config differ in ``num_classes``: the head would be random."""
    stated = {place: table["num_classes"] for place, table in tables.items() if table.get("num_classes") is not None}
    if len(set(map(str, stated.values()))) > 1:
        places = ", ".join(f"{value} in {place}" for place, value in sorted(stated.items()))
        raise InvalidFileError(f"config.json contradicts itself about num_classes: {places}")


_STEM: dict[str, Any] = {
    **{f"stem_{name}": kind for name, kind in get_type_hints(StemSpec).items()},
    "norm_eps": float | None,
    "stride": int | None,
}
"""Arguments of every conv-stem name, beyond those of its trunk."""


_EXTRACTOR: dict[str, Any] = {
    "feature_cls": str,
    "features_only": bool,
    "out_indices": int | list[int],
    "output_fmt": str,
    "output_stride": int,
    "pyramid_blocks": int | list[int],
}
"""Arguments of a saved feature extractor, either timm's or our pyramid."""


_NOT_IN_FILES = ("args", "device", "dtype", "kwargs", "return")
"""Annotated constructor names that a saved model's arguments cannot include."""


def check_model_args(architecture: str, args: Mapping[str, Any]) -> None:
    """Raise ``InvalidFileError`` unless timm's model takes all these arguments with values of these types.

    Args:
        architecture: timm name.
        args: ``model_args`` of a config.
    """
    known = argument_kinds(architecture)
    unknown = sorted(set(args) - set(known))
    if unknown:
        raise InvalidFileError(
            f"config.json: unknown model_args {', '.join(unknown)}; {architecture} has {', '.join(sorted(known))}"
        )
    check_kinds(args, known)


@cache
def argument_kinds(architecture: str) -> Mapping[str, Any]:
    """Return the arguments that a timm name's config can hold, with their annotations."""
    from timm import models
    from torch import nn

    name = architecture.removesuffix(PYRAMID)
    named = get_type_hints(models.model_entrypoint(trunks().get(name, name))).get("return")
    row = rows("architectures").get(name, {})
    model: type = getattr(models, POS_EMBEDS[row.get("pos_embed", "learn")])  # our own entrypoints annotate no class
    if isinstance(named, type) and issubclass(named, nn.Module):
        model = named
    kinds: dict[str, Any] = {}
    for cls in reversed(model.__mro__[:-1]):
        kinds |= get_type_hints(vars(cls).get("__init__", object.__init__))
    return {name: kind for name, kind in (kinds | _STEM | _EXTRACTOR).items() if name not in _NOT_IN_FILES}
