"""Writes a transplanted or folded model as a folder for timm and the Hub, a transplant with its measured error."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convstem.errors import TransplantError
from convstem.hub.model import create_source
from convstem.hub.source import Source, source_of
from convstem.inference import fold
from convstem.publishing.card import render
from convstem.publishing.card_facts import CardFacts, code, facts_of_config, paragraphs
from convstem.publishing.folder import check_new, finish, save, write_folder
from convstem.registry import catalog
from convstem.registry.licenses import license_or_other
from convstem.registry.strides import DARK
from convstem.registry.tables import RESIZED
from convstem.stem.carried import TransplantReport, normalised_range
from convstem.stem.carry import MARGIN
from convstem.stem.find import find_embed
from convstem.transplanting.grid import as_plain, enlarge_patches, resize_patch
from convstem.transplanting.patch_embedding import find_patch_embedding, lowest_of
from convstem.transplanting.surgery import transplant


def fold_to_folder(model: Any, source: Source, folder: Path, overwrite: bool = False) -> Any:
    """Fold a timm model and write ``config.json``, ``model.safetensors`` and a model card. Return the folded model.

    Args:
        model: one of our timm models in eval mode.
        source: its origin, for the card.
        folder: where to write; created if needed.
        overwrite: replace the folder's model.

    Raises:
        ArgumentError, ExistingPathError: see ``check_new``.
        ConvStemError: see ``convstem.fold``; nothing is written.
    """
    check_new(folder, source, overwrite)
    folded: Any = fold(model)
    license = license_or_other(folded.pretrained_cfg.get("license"))
    description = (
        f"{code(source.short)} with the BatchNorm of its stem folded into the convolutions: the same function."
    )

    def write(staged: Path) -> None:
        save(folded, staged)
        finish(staged, license, lambda config: render(facts_of_config(config, None, license, description=description)))

    write_folder(folder, write, overwrite)
    return folded


_progress = logging.getLogger("convstem.progress")

PROBE_IMAGES = 8


@dataclass(frozen=True)
class TransplantResult:
    """The result of ``transplant_to_folder``."""

    source: str
    architecture: str
    license: str
    measured_error: float
    """Relative error of the model's features on the probe batch, in float32."""
    report: TransplantReport
    folder: Path

    def to_json(self) -> dict[str, Any]:
        """Return the result for JSON."""
        report = {**asdict(self.report), "scope": self.report.scope}
        return {**asdict(self), "report": report, "folder": str(self.folder), "summary": self.report.summary()}


def transplant_to_folder(
    source: str | os.PathLike[str], folder: Path, *, pretrained: bool = True, overwrite: bool = False, **options: Any
) -> TransplantResult:
    """Transplant a timm model and write ``config.json``, ``model.safetensors`` and a model card.

    Args:
        source: timm name (with tag), a Hub repository or a folder.
        folder: where to write; created if needed.
        pretrained: False transplants random weights, for trials.
        overwrite: replace the folder's model.
        options: see ``write_transplant``.

    Raises:
        ArgumentError, ExistingPathError: see ``check_new``.
        PathError: the folder cannot be written.
        TransplantError: the measured error exceeds ``tolerance``, or the result has no name; nothing is written.
    """
    found, folder = source_of("transplant", source), Path(folder)
    check_new(folder, found, overwrite)
    model = create_source(found, pretrained, None if options.get("bands") else find_patch_embedding)
    return write_transplant(model, found, folder, overwrite=overwrite, **options)


def write_transplant(
    model: nn.Module,
    source: Source,
    folder: Path,
    *,
    tolerance: float = 1e-4,
    license: str | None = None,
    overwrite: bool = False,
    bands: Sequence[int] | None = None,
    notes: Sequence[str] = (),
    examine: Callable[[nn.Module, TransplantReport], object] = lambda twin, report: None,
    **options: Any,
) -> TransplantResult:
    """Transplant a built model and write it like ``transplant_to_folder``.

    Args:
        model: a patchify timm model, or one of ours that gets more input channels.
        source: its origin, for the card.
        folder: where to write; created if needed.
        tolerance: largest accepted relative error of the features on the probe batch.
        license: licence of the weights; default: the one in the model's pretrained cfg.
        overwrite: replace the folder's model.
        notes: further sentences for the card.
        examine: called with the transplanted model before it is written; it may raise to stop.
        bands, options: further arguments of ``convstem.transplant``.

    Raises:
        PathError, TransplantError: see ``transplant_to_folder``.
    """
    _progress.info("transplanting %s", source.short)
    twin = transplant(model, bands=bands, **options).eval()
    cfg: dict[str, Any] = twin.pretrained_cfg  # type: ignore[assignment]
    if cfg["architecture"] not in catalog.architectures():
        raise TransplantError(
            f"{source} was transplanted, but nothing was written: folders load by name, and timm's "
            f"{cfg['architecture'].removesuffix('_convstem')} has none on a conv stem. `convstem list --all` prints "
            "the names; convstem.transplant returns the model in Python"
        )
    stems = find_embed(model) is not None  # it had a stem and only got more input channels
    report: TransplantReport = TransplantReport(()) if stems else twin.transplant_report  # type: ignore[assignment]
    _progress.info("measuring the error on %d images", PROBE_IMAGES)
    error = measure_error(model, twin, bands, report)
    if not error <= tolerance:
        raise TransplantError(
            f"the measured relative error {error:.1e} exceeds the tolerance {tolerance:.1e}; nothing was written. "
            "Use a wider stem or a larger --tolerance"
        )
    examine(twin, report)
    _progress.info("writing %s", folder)
    license = license or license_or_other(cfg.get("license") or "unknown")
    result = TransplantResult(str(source), cfg["architecture"], license, error, report, folder)

    def write(staged: Path) -> None:
        save(twin, staged)
        finish(
            staged,
            license,
            lambda config: _wider_card(result, bands, config) if stems else _card(result, source.short, config, notes),
        )

    write_folder(folder, write, overwrite)
    return result


@torch.no_grad()
def measure_error(
    source: nn.Module,
    twin: nn.Module,
    bands: Sequence[int] | None = None,
    report: TransplantReport | None = None,
) -> float:
    """Return the relative error of ``twin``'s features on the probe batch.

    Args:
        source, twin: the model and its transplant.
        bands: channels of ``twin`` that are ``source``'s; default: all.
        report: the transplant's report. For resized filters, each patch of an image is resized. For another stride,
            the source is compared at that stride, or on averages of pixels.
    """
    if report and report.restrided:
        return _error_at_stride(source, twin, bands, report)
    resized_from = report.resized_from if report else None
    x = probe_batch(twin, image_size(source))
    expected = source.forward_features(x if bands is None else x[:, list(bands)])  # type: ignore[operator]
    actual = twin.forward_features(enlarge_patches(x, resized_from) if resized_from else x)  # type: ignore[operator]
    return float((actual - expected).norm() / expected.norm())


def _error_at_stride(source: Any, twin: Any, bands: Sequence[int] | None, report: TransplantReport) -> float:
    assert report.restrided
    patch, stride = report.restrided
    plain = copy.deepcopy(source)
    if report.resized_from:
        resize_patch(plain, RESIZED)
    beyond = None
    if report.border == DARK:
        low = lowest_of(plain, None)
        beyond = None if low is None else low - MARGIN
    plain = as_plain(plain, stride, beyond)
    x = probe_batch(twin, image_size(twin))
    seen = x if bands is None else x[:, list(bands)]
    expected = plain.forward_features(nn.functional.avg_pool2d(seen, stride // patch) if stride > patch else seen)
    return float((twin.forward_features(x) - expected).norm() / expected.norm())


def image_size(model: Any) -> tuple[int, int]:
    """Return the (height, width) that a timm model was built for; its pretrained cfg may state another size."""
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = built or model.pretrained_cfg["input_size"][1:]
    return height, width


def probe_batch(model: Any, size: Sequence[int]) -> Tensor:
    """Return images [PROBE_IMAGES, in_chans, height, width] over the model's pixel range, from noise to smooth.

    If the model's mean and std give no range for its channels, values go from -2 to 2.

    Args:
        model: has mean and std in its pretrained cfg.
        size: (height, width) in pixels.
    """
    cfg, generator = model.pretrained_cfg, torch.Generator().manual_seed(0)
    channels = cfg["input_size"][0]
    known = normalised_range(cfg["mean"], cfg["std"], channels)
    low, high = map(torch.tensor, known or ([-2.0] * channels, [2.0] * channels))
    images = []
    for index in range(PROBE_IMAGES):
        coarse = [max(side >> index, 2) for side in size]
        noise = torch.rand(1, channels, *coarse, generator=generator)
        images.append(nn.functional.interpolate(noise, size=size, mode="bilinear"))
    return low[:, None, None] + (high - low)[:, None, None] * torch.cat(images)


def _wider_card(result: TransplantResult, bands: Sequence[int] | None, config: Mapping[str, Any]) -> str:
    channels = config["pretrained_cfg"]["input_size"][0]
    facts = _facts(result, config)
    placed = ", ".join(map(str, bands or ()))
    text = (
        f"{code(facts.base_model or result.source)} with {channels} input channels: its filters are on bands {placed}, "
        "counted from 0, and zero on the others: its function of these bands is unchanged. Not trained further."
    )
    return render(replace(facts, description=text))


def _card(result: TransplantResult, name: str, config: Mapping[str, Any], notes: Sequence[str]) -> str:
    facts = _facts(
        result,
        config,
        transplanted=True,
        measured_error=result.measured_error,
        resized_from=result.report.resized_from,
        note=f"{result.report.summary()} {getattr(catalog.find(result.architecture), 'measured', '')}".strip(),
    )
    return render(
        replace(facts, description=f"{code(facts.base_model or name)} on a convolutional stem.{paragraphs(notes)}")
    )


def _facts(result: TransplantResult, config: Mapping[str, Any], **more: Any) -> CardFacts:
    license = result.license if result.license != "unknown" else "other"
    return facts_of_config(config, None, license, **more)
