"""Turns a checkpoint of any layout into a folder that timm, transformers and the Hub understand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from convstem.errors import ExistingPathError
from convstem.files.checkpoint import read_checkpoint
from convstem.files.paths import path_errors
from convstem.files.safetensors import check_finite, write_weights
from convstem.files.staging import replacing
from convstem.hub.config import read_json
from convstem.hub.source import CARD, CONFIG, WEIGHTS
from convstem.layouts.conversion import Converted, convert
from convstem.layouts.recognise import LAYOUTS
from convstem.layouts.report import ConversionReport
from convstem.publishing.cards.facts import facts_of_config
from convstem.publishing.cards.render import render
from convstem.publishing.converted_model import build
from convstem.publishing.folder import finish_config, save
from convstem.publishing.neighbours import facts_beside, weights_in
from convstem.publishing.references import compare
from convstem.publishing.transplant_folder import TransplantResult, write_transplant
from convstem.upstream.private import timm_set_metadata


@dataclass(frozen=True)
class ConversionResult:
    """What ``convert_to_folder`` did."""

    source: str
    folder: Path
    target: str
    architecture: str
    model_args: Mapping[str, Any]
    patchify: bool
    """Whether the result is a plain ViT of timm's, without a conv stem."""
    report: ConversionReport
    transplant: TransplantResult | None = None
    check: str = ""
    """How the logits compare with the reference, or why they were not compared."""

    def to_json(self) -> dict[str, Any]:
        """Return the result JSON-plain."""
        names = ("source", "target", "architecture", "patchify", "check")
        return {
            **{name: getattr(self, name) for name in names},
            "folder": str(self.folder),
            "model_args": dict(self.model_args),
            "report": self.report.to_json(),
            "transplant": self.transplant and self.transplant.to_json(),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return what was done as labels and texts."""
        report = self.report
        grounds = Counter(report.dropped.values())
        args = ", ".join(f"{name}={value}" for name, value in self.model_args.items())
        plain = "a plain (patchify) ViT of timm's; --transplant gives it a conv stem"
        rows = [
            (self.source, str(self.folder)),
            ("layout", f"{report.layout}: {report.why}"),
            ("inside", " ".join(report.path)),
            ("weights", report.weights),
            ("architecture", f"{self.architecture}({args})"),
            ("", plain if self.patchify else ""),
            ("keys", f"{sum(map(len, report.mapped.values()))} became {len(report.mapped)}"),
            *(("left out", f"{count}: {ground}") for ground, count in sorted(grounds.items())),
            *(("note", note) for note in report.notes),
            ("transplant", self._transplanted()),
            ("check", self.check),
            ("written", ", ".join(sorted(path.name for path in self.folder.iterdir()))),
        ]
        return [row for row in rows if row[1]]

    def _transplanted(self) -> str:
        done = self.transplant
        return f"{done.report.summary()}; measured relative error {done.measured_error:.1e}" if done else ""


def convert_to_folder(
    source: Path,
    folder: Path,
    *,
    layout: str | None = None,
    target: str = "timm",
    use_ema: bool | None = None,
    architecture: str | None = None,
    transplanted: bool = False,
    check: bool = False,
    license: str = "other",
    **facts: Any,
) -> ConversionResult:
    """Convert a checkpoint and write ``config.json``, ``model.safetensors`` and ``README.md``.

    Nothing is written before every key and shape has been compared with the architecture.

    Args:
        source: a checkpoint, or a folder of transformers with one.
        folder: where to write; created if needed.
        layout, use_ema, architecture, facts: ``source`` and the rest of ``convstem.convert``.
        target: layout to write; for another than ``timm`` only ``model.safetensors`` is written.
        transplanted: give a plain (patchify) ViT a conv stem with the same function.
        check: compare outputs with the library that the checkpoint comes from, where it is installed.
        license: licence of the weights, for the card and the config.

    Raises:
        ExistingPathError: there is a model in ``folder`` already.
        ConversionError, CheckpointError: the checkpoint is not whole, or not of the architecture.
        InvalidFileError: the checkpoint, or a config of transformers beside it, is damaged.
        MissingPathError: no such checkpoint.
        TransplantError: the transplant would be too inaccurate, or has no name of ours.
    """
    taken = [name for name in (CONFIG, WEIGHTS) if (folder / name).exists()]
    if taken:
        raise ExistingPathError(f"{folder} has a {' and a '.join(taken)} already: name another folder")
    path = weights_in(source)
    content, beside = read_checkpoint(path), facts_beside(path)
    layout = layout or beside.pop("layout", None)
    known = {**beside, **{key: value for key, value in facts.items() if value is not None}}
    converted = convert(content, layout, architecture=architecture, use_ema=use_ema, **known)
    check_finite(converted, path.name)
    model = build(converted)
    compared = compare(content, path, converted, model, use_ema) if check else ""
    result = partial(ConversionResult, path.name, folder, target, report=converted.report, check=compared)
    if transplanted and converted.patchify and target == "timm":
        if converted.norm_eps != 1e-6:
            timm_set_metadata(model, {"norm_eps": converted.norm_eps})  # our names take it, timm's plain ViTs do not
        written = write_transplant(model, f"local-dir:{path.name}", folder, license=license)
        args = read_json(folder / CONFIG).get("model_args") or {}
        return result(written.architecture, args, False, transplant=written)
    with path_errors("write", folder), replacing(folder, last=CONFIG) as staged:
        if target == "timm":
            _write_timm(model, converted, staged, path.name, license)
        else:
            _write_layout(converted, target, staged)
    return result(converted.architecture, converted.model_args, converted.patchify)


def _write_timm(model: Any, converted: Converted, folder: Path, name: str, license: str) -> None:
    save(model, folder, ours=not converted.patchify)
    config = finish_config(folder, license)
    (folder / CARD).write_text(_card(config, name, converted, license), encoding="utf-8")


def _write_layout(converted: Converted, target: str, folder: Path) -> None:
    outward = convert(converted.state_dict, "timm", target)
    tensors = {key: tensor.contiguous() for key, tensor in outward.items()}
    write_weights(tensors, folder / WEIGHTS)


def _card(config: Mapping[str, Any], name: str, converted: Converted, license: str) -> str:
    origin = f"Converted from `{name}`, {LAYOUTS[converted.source].title} ({converted.report.weights} weights)."
    if not converted.patchify:
        return render(facts_of_config(config, None, license, name=converted.architecture, description=origin))
    notes = "".join(f"\n\n{note[0].upper()}{note[1:]}." for note in converted.report.notes)
    return (
        f"---\nlibrary_name: timm\nlicense: {license}\n---\n\n# {converted.architecture}\n\n{origin} A plain "
        f"(patchify) ViT of timm's; `convstem transplant local-dir:FOLDER --out OUT` gives it a conv stem.{notes}\n"
    )
