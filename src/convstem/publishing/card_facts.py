"""The facts in a model card, from a registry row or a pushed model's config. This file does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from convstem.hub.config import Step, steps
from convstem.registry import catalog
from convstem.registry.records import Architecture, ModelSpec, TrunkSpec, WeightsSpec
from convstem.stem.carried import carried_by

_ACTIVE = re.compile(r"[\\`*\[\]<>|~&$]")
"""Characters that start emphasis, code, links, images, HTML, tables and formulas."""

_START = re.compile(r"^([#+=-]|\d+[.)])")
"""Text that starts a heading, list or rule at the beginning of a paragraph."""


def plain(text: str) -> str:
    """Return a text as one line, escaped so that markdown shows it literally."""
    line = _ACTIVE.sub(r"\\\g<0>", " ".join(text.split()))
    return _START.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)


def paragraphs(sentences: Iterable[str]) -> str:
    """Return notes as paragraphs, adding the capital and full stop that they lack."""
    return "".join(f"\n\n{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def code(text: str) -> str:
    """Return a name in backticks."""
    return f"`{' '.join(text.replace('`', ' ').split())}`"


@dataclass(frozen=True)
class CardFacts:
    """The facts in a card."""

    name: str
    architecture: str
    repo_id: str | None
    """The model's repository on the Hub; None before a push."""
    license: str
    num_classes: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"
    description: str = ""
    dataset: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_source: str = ""
    source_metrics: Mapping[str, float] = field(default_factory=dict)
    """For a transplant: published metrics of ``base_model``."""
    source_metrics_from: str = ""
    recipe: str = ""
    base_model: str | None = None
    transplanted: bool = False
    """Whether the weights are those of ``base_model`` on a conv stem, without further training."""
    measured_error: float | None = None
    """For a transplant: relative error of the features against the source."""
    resized_from: int | None = None
    """For a transplant: patch size of ``base_model``, if its filters were resized."""
    note: str = ""
    """For a transplant: further remarks."""
    steps: tuple[Step, ...] = ()
    """Known steps in the weights' history."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    restrided: tuple[int, int] | None = None
    """(Patch size, stride) in pixels, if they differ."""
    labels: tuple[str, ...] = ()
    """Class names, in order."""
    tag: str | None = None
    """The registry's tag, if the weights have one."""


def facts_of_entry(entry: WeightsSpec, repo_id: str | None = None, measured_error: float | None = None) -> CardFacts:
    """Return the registry's facts about a weights entry.

    Args:
        entry: the row.
        repo_id: repository of the card, if known.
        measured_error: for a transplanted entry, if measured.
    """
    shared = ("license", "num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "description")
    ours = ("dataset", "metrics", "metrics_source", "recipe", "tag", "name", "architecture")
    spec = catalog.find(entry.architecture)
    source = ("source_metrics", "source_metrics_from")
    return CardFacts(
        repo_id=repo_id,
        resized_from=spec.resized_from if isinstance(spec, TrunkSpec) else None,
        note=_note(spec) if entry.transform == "transplant" else "",
        base_model=entry.hub_name[0] if entry.hf_hub_id else None,
        transplanted=entry.transform == "transplant",
        measured_error=measured_error,
        crop_mode=getattr(spec, "crop_mode", "center"),
        **{name: getattr(entry, name) for name in shared + ours + source},
    )


def _note(spec: Architecture) -> str:
    """Return remarks on a transplant into an architecture's own stem."""
    report = carried_by(spec.stem, spec.embed_dim)
    if isinstance(spec, TrunkSpec):
        report = replace(report, resized_from=spec.resized_from)
    return f"{report.outcome()} {getattr(spec, 'measured', '')}".strip()


def facts_of_config(config: Mapping[str, Any], repo_id: str | None, license: str, **more: Any) -> CardFacts:
    """Return the facts in a timm ``config.json``.

    Args:
        config: the content of ``config.json``.
        repo_id: repository of the card, if known.
        license: licence given by the pusher.
        more: further fields of ``CardFacts``.
    """
    cfg = config["pretrained_cfg"]
    facts: dict[str, Any] = {
        "name": repo_id.partition("/")[2] if repo_id else config["architecture"],
        "architecture": config["architecture"],
        "num_classes": config["num_classes"],
        "input_size": tuple(cfg["input_size"]),
        "mean": tuple(cfg["mean"]),
        "std": tuple(cfg["std"]),
        "interpolation": cfg["interpolation"],
        "crop_pct": cfg["crop_pct"],
        "crop_mode": cfg.get("crop_mode", "center"),
        "description": plain(cfg.get("description") or ""),
        "model_args": config.get("model_args", {}),
        "labels": _labels(config),
    }
    stride, patch = facts["model_args"].get("stride"), facts["model_args"].get("patch_size")
    if stride and patch and stride != patch:
        facts["restrided"] = (patch, stride)
    known = [step for step in steps(cfg) if step.repo_id is None or step.repo_id != repo_id]  # skip this repository
    sources = [step.repo_id for step in known if step.repo_id]
    facts |= {"steps": tuple(known), "base_model": sources[-1] if sources else None}
    return CardFacts(repo_id=repo_id, license=license, **{**facts, **more})


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("label_names") or config["pretrained_cfg"].get("label_names")
    return tuple(map(plain, names)) if isinstance(names, list) else ()


def sized_spec(facts: CardFacts) -> Architecture | None:
    """Return the architecture with the weights' sizes, or None if not all of its facts are known."""
    spec = catalog.architectures().get(facts.architecture)
    if isinstance(spec, ModelSpec):
        names = {
            f for f in ModelSpec.__dataclass_fields__ if f not in ("img_size", "name", "num_classes", "torchvision")
        }
        changes = {key: _plain(value) for key, value in facts.model_args.items() if key in names}
        if facts.restrided:  # a spec's patch size is the spacing of its tokens
            changes["patch_size"] = facts.restrided[1]
        if changes:  # torchvision may be unable to express the changed model
            spec = replace(spec, **changes, torchvision=None)
    elif spec is None or facts.model_args or facts.input_size[0] != 3:
        return None  # any argument may change the recorded counts
    _, height, width = facts.input_size
    return catalog.sized(spec, facts.num_classes, height if height == width else (height, width))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
