"""Converts a checkpoint of any layout into a folder that timm, transformers and the Hub can read."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convstem.errors import ArgumentError, CheckpointError, ConvStemError, MissingPathError
from convstem.files.checkpoint import read_checkpoint
from convstem.files.paths import readable
from convstem.files.safetensors import check_finite, write_weights
from convstem.hub.config import read_json
from convstem.hub.failures import again_if_deleted
from convstem.hub.read import fetch_all
from convstem.hub.source import CONFIG, FILES, PREPROCESSING, WEIGHTS, Source, source_of
from convstem.layouts.comparison import differences
from convstem.layouts.conversion import ConversionReport, Converted, convert
from convstem.layouts.recognise import LAYOUTS
from convstem.layouts.unwrap import Unwrapped, unwrap
from convstem.publishing.card import render
from convstem.publishing.card_facts import code, facts_of_config, paragraphs
from convstem.publishing.derived import TransplantResult, write_transplant
from convstem.publishing.folder import check_new, finish, save, write_folder
from convstem.publishing.foreign import Beside, compare, read_beside, weights_in
from convstem.publishing.trained import config_folder
from convstem.registry import catalog
from convstem.registry.licenses import check_license
from convstem.stem.carried import TransplantReport

_progress = logging.getLogger("convstem.progress")

_ORIGIN = ("description", "file", "hf_hub_filename", "hf_hub_id", "label_names", "license", "origin_url", "paper_ids",
           "paper_name", "source", "tag", "url")  # fmt: skip
"""Fields of the architecture's pretrained cfg that describe the registry's weights, not the converted ones."""


@dataclass(frozen=True)
class ConversionResult:
    """The result of ``convert_to_folder``."""

    source: str
    folder: Path
    target: str
    architecture: str
    model_args: Mapping[str, Any]
    patchify: bool
    """Whether the result is a plain timm ViT without a conv stem."""
    report: ConversionReport
    transplant: TransplantResult | None = None
    check: str = ""
    """How outputs compare with the reference, or why they were not compared."""

    def to_json(self) -> dict[str, Any]:
        """Return the result for JSON."""
        names = ("source", "target", "architecture", "patchify", "check")
        return {
            **{name: getattr(self, name) for name in names},
            "folder": str(self.folder),
            "model_args": dict(self.model_args),
            "report": self.report.to_json(),
            "transplant": self.transplant and self.transplant.to_json(),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the result as pairs of label and text."""
        report = self.report
        reasons = Counter(report.dropped.values())
        args = ", ".join(f"{name}={value}" for name, value in self.model_args.items())
        plain = "a plain (patchify) timm ViT; --transplant gives it a conv stem"
        rows = [
            (self.source, str(self.folder)),
            ("layout", f"{report.layout}: {report.why}"),
            ("inside", " ".join(report.path)),
            ("weights", report.weights),
            ("architecture", f"{self.architecture}({args})"),
            ("", plain if self.patchify else ""),
            ("keys", f"{sum(map(len, report.mapped.values()))} became {len(report.mapped)}"),
            *(("left out", f"{count}: {reason}") for reason, count in sorted(reasons.items())),
            *(("note", note) for note in report.notes),
            ("transplant", self.transplant.report.summary() if self.transplant else ""),
            ("error", f"{self.transplant.measured_error:.1e}, against the source, relative" if self.transplant else ""),
            ("check", self.check),
            ("written", ", ".join(sorted(FILES)) if self.target == "timm" else WEIGHTS),
        ]
        return [row for row in rows if row[1]]


@again_if_deleted
def convert_to_folder(
    source: str | os.PathLike[str],
    folder: Path,
    *,
    layout: str | None = None,
    target: str = "timm",
    use_ema: bool | None = None,
    architecture: str | None = None,
    transplanted: bool = False,
    check: bool = False,
    license: str = "other",
    overwrite: bool = False,
    labels: Sequence[str] | None = None,
    **facts: Any,
) -> ConversionResult:
    """Convert a checkpoint and write ``config.json``, ``model.safetensors`` and ``README.md``.

    Every key and shape is compared with the architecture before anything is written.

    Args:
        source: a checkpoint, or a folder or Hub repository of transformers or timm with one. Preprocessing and class
            names in their configs are kept.
        folder: where to write; created if needed.
        layout, use_ema, architecture, facts: ``source`` and other arguments of ``convstem.convert``.
        target: layout to write; other layouts than ``timm`` get only ``model.safetensors``.
        transplanted: give a plain (patchify) ViT a conv stem with the same function.
        check: compare outputs with the checkpoint's own library, if installed.
        license: licence of the weights, for the card and the config.
        overwrite: replace the folder's model.
        labels: class names, in order; default: those of a config beside the checkpoint.

    Raises:
        ArgumentError: the wrong kind of source, ``folder`` holds the source, an unknown licence, or the number of
            labels is not the number of classes.
        ExistingPathError: ``folder`` already has a model.
        ConversionError, CheckpointError: the checkpoint is incomplete or not of the architecture.
        HubError: the repository cannot be read.
        InvalidFileError: the checkpoint, or a transformers config beside it, is damaged.
        MissingPathError: no such checkpoint.
        TransplantError: the transplant would be too inaccurate, or has no name of ours.
    """
    found = source_of("convert", source)
    check_license(license)
    check_new(folder, found, overwrite, FILES if target == "timm" else (CONFIG, WEIGHTS))
    if found.kind != "repository":  # a download has its own progress bar
        _progress.info("reading %s", found.path.name)
    path = _fetched(found) if found.kind == "repository" else weights_in(found.path)
    name = found.repo_id or readable(path.name)
    content, beside = read_checkpoint(path), read_beside(path)
    opened = unwrap(content, use_ema)
    start, lost = _start(opened)
    known = {**start.facts, **beside.facts, **{key: value for key, value in facts.items() if value is not None}}
    _progress.info("converting %s", path.name)
    converted = convert(content, layout or beside.layout, architecture=architecture, use_ema=use_ema, **known)
    sure = opened.arguments or beside.facts or known.keys() & {"img_size", "stride"}
    hints = (*lost, *(() if sure else _two_readings(converted)))  # for whoever converts: no card repeats them
    check_finite(converted, path.name)
    model = _build(converted, {**start.cfg, **beside.cfg, **_label_names(converted, labels, beside.labels)})
    told = replace(converted.report, notes=(*hints, *converted.report.notes))
    if beside.layout and not layout:
        told = replace(told, why="its config says so")
    result = partial(ConversionResult, name, folder, target, report=told)
    if transplanted and converted.patchify and target == "timm":
        said: list[str] = []

        def examine(twin: nn.Module, report: TransplantReport) -> None:
            if check:
                said.append(compare(content, path, converted, model, use_ema, twin, report.resized_from))

        notes = converted.report.notes
        written = write_transplant(
            model, found, folder, license=license, overwrite=overwrite, notes=notes, examine=examine
        )
        args = read_json(folder / CONFIG).get("model_args") or {}
        return result(written.architecture, args, False, transplant=written, check=" ".join(said))
    _progress.info("comparing and writing %s", folder)
    compared = compare(content, path, converted, model, use_ema) if check else ""

    def write(staged: Path) -> None:
        if target == "timm":
            save(model, staged, ours=not converted.patchify)
            finish(staged, license, lambda config: _card(config, name, converted, license))
        else:
            _write_layout(converted, target, staged)

    write_folder(folder, write, overwrite)
    return result(converted.architecture, converted.model_args, converted.patchify, check=compared)


def _fetched(source: Source) -> Path:
    """Return a repository's verified weights file. The configs are fetched into its folder."""
    files = fetch_all(source.repo_id, [WEIGHTS], source.revision, optional=[CONFIG, PREPROCESSING])
    return files[WEIGHTS].path


def _start(opened: Unwrapped) -> tuple[Beside, tuple[str, ...]]:
    """Return the facts in the config of the model that a training script started from, and notes.

    What the checkpoint states itself is left out, and so are class names: training may have had other classes.
    """
    name = str(opened.arguments.get("architecture", ""))
    if ":" not in name:
        return Beside(), ()
    try:
        folder = config_folder(name)
        if not (folder / CONFIG).is_file():
            raise MissingPathError(f"{folder} has no {CONFIG}")
        found = read_beside(folder / WEIGHTS)
    except ConvStemError as error:
        return Beside(), (
            f"it was trained from {name}, which can no longer be read ({error}): stride, mean and std are those of the "
            "checkpoint alone; set them with --stride, --mean and --std",
        )
    stated = {*opened.arguments, *opened.preprocessing}
    return Beside({key: value for key, value in found.facts.items() if key not in stated}, cfg=found.cfg), ()


def _two_readings(converted: Converted) -> Iterator[str]:
    """Yield a note if shapes fit a model of larger images as well as one of denser tokens."""
    args = converted.model_args
    size, spec = args.get("img_size"), None if converted.patchify else catalog.find(converted.architecture)
    if spec is None or "stride" in args or not (isinstance(size, int) and isinstance(spec.img_size, int)):
        return
    if size in (2 * spec.img_size, 4 * spec.img_size):
        stride = spec.patch_size * spec.img_size // size
        yield (
            f"its positions fit {size} pixels at stride {spec.patch_size}, as written, or {spec.img_size} pixels at "
            f"stride {stride}: for these give --stride {stride}"
        )


def _label_names(converted: Converted, asked: Sequence[str] | None, found: Sequence[str]) -> dict[str, list[str]]:
    """Return the pretrained cfg's ``label_names``, if there are class names."""
    classes = converted.sizes.num_classes
    if asked is not None and len(asked) != classes:
        raise ArgumentError(
            f"{len(asked)} labels (--labels) were given for {classes} classes: give one for each output of the model"
        )
    names = found if asked is None else asked
    return {"label_names": list(names)} if names and len(names) == classes else {}


def _build(converted: Converted, more: Mapping[str, Any]) -> Any:
    """Return the timm model of a converted checkpoint, with ``more`` fields in its pretrained cfg.

    Raises:
        CheckpointError: a key or shape does not match the architecture.
    """
    import timm

    sizes = {"num_classes": converted.sizes.num_classes, "in_chans": converted.sizes.in_chans}
    args = {**sizes, **converted.model_args}
    create = partial(timm.create_model, converted.architecture, pretrained_cfg=_cfg(converted, more), **args)
    model = create(device="meta")
    _require_fit(converted, model)
    if set(dict(model.named_buffers())) - set(converted.state_dict):  # buffers that are computed, not saved
        with torch.device("cpu"):
            model = create()
    model.load_state_dict(converted.state_dict, assign=True)
    if converted.patchify:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = converted.norm_eps
    return model.eval()


def _cfg(converted: Converted, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture's pretrained cfg with the checkpoint's facts, without the registry weights' origin."""
    from timm.layers import to_2tuple
    from timm.models import resolve_pretrained_cfg

    own = resolve_pretrained_cfg(converted.architecture).to_dict()
    size = to_2tuple(converted.model_args.get("img_size") or own["input_size"][1:])
    images = {"input_size": (converted.sizes.in_chans, *size)}
    kept = {key: value for key, value in own.items() if key not in _ORIGIN}
    return {**kept, **images, **more, **converted.pretrained_cfg}


def _require_fit(converted: Converted, model: nn.Module) -> None:
    wrong = differences(converted, model.state_dict())
    if wrong:
        raise CheckpointError(f"this checkpoint is not a {converted.architecture}; {wrong}")


def _write_layout(converted: Converted, target: str, folder: Path) -> None:
    outward = convert(converted.state_dict, "timm", target)
    tensors = {key: tensor.contiguous() for key, tensor in outward.items()}
    write_weights(tensors, folder / WEIGHTS)


def _card(config: Mapping[str, Any], name: str, converted: Converted, license: str) -> str:
    origin = f"Converted from {code(name)}, {LAYOUTS[converted.source].title} ({converted.report.weights} weights)."
    notes = paragraphs(converted.report.notes)
    if not converted.patchify:
        return render(facts_of_config(config, None, license, description=origin + notes))
    return (
        f"---\nlibrary_name: timm\nlicense: {license}\n---\n\n# {converted.architecture}\n\n{origin} A plain "
        f"(patchify) timm ViT; `convstem transplant FOLDER --out OUT` gives it a conv stem.{notes}\n"
    )
