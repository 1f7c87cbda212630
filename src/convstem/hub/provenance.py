"""Where weights came from, step by step: notes in timm's own ``pretrained_cfg``, which every save and load keeps.

Only what is known is noted. What happens to a model in memory afterwards is not: a note says where weights started.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LOADED = "made from"
SCRATCH = "trained from scratch"
TRANSPLANTED = "transplanted from"
TUNED = "fine-tuned from"

_PREFIX = "convstem: "

_SOURCE = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?|", re.ASCII)
"""How a source can be written: a note of anybody's that says more is none of ours, and gets into no card."""


@dataclass(frozen=True)
class Step:
    """One step in the life of weights."""

    what: str
    """``LOADED``, ``SCRATCH``, ``TRANSPLANTED`` or ``TUNED``."""
    source: str = ""
    """A repository (``org/name``, with ``@commit`` where known) or a pretrained name; empty where there is none."""

    @property
    def repo_id(self) -> str | None:
        """The source, if it is a repository."""
        return self.source.partition("@")[0] if "/" in self.source else None

    def __str__(self) -> str:
        """Return the step in words."""
        source, _, commit = self.source.partition("@")
        return f"{self.what} {source}".strip() + (f" at commit {commit}" if commit else "")


def steps(cfg: Mapping[str, Any]) -> tuple[Step, ...]:
    """Return the steps that a pretrained cfg records, oldest first."""
    notes = [note for note in cfg.get("notes") or () if isinstance(note, str) and note.startswith(_PREFIX)]
    return tuple(step for note in notes if (step := _parse(note.removeprefix(_PREFIX))))


def record(model: Any, new: Iterable[Step]) -> None:
    """Replace the steps that a model records; other notes stay."""
    cfg = model.pretrained_cfg
    others = [note for note in cfg.get("notes") or () if not str(note).startswith(_PREFIX)]
    ours = [f"{_PREFIX}{step.what} {step.source}".rstrip() for step in new]
    kept = {key: value for key, value in cfg.items() if key != "notes"}
    notes = {"notes": (*others, *ours)} if others or ours else {}
    model.pretrained_cfg = model.default_cfg = {**kept, **notes}


def forget(model: Any) -> None:
    """Remove what a pretrained cfg says about weights from a model that has other ones, or none yet."""
    record(model, ())
    for field in ("description", "license"):
        model.pretrained_cfg.pop(field, None)


def add(model: Any, step: Step) -> None:
    """Record one more step of a model."""
    record(model, (*steps(model.pretrained_cfg), step))


def _parse(note: str) -> Step | None:
    found = (Step(what, note.removeprefix(what).strip()) for what in (LOADED, SCRATCH, TRANSPLANTED, TUNED))
    return next((step for step in found if note.startswith(step.what) and _SOURCE.fullmatch(step.source)), None)
