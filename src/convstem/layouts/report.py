"""What a conversion did with every key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ConversionReport:
    """Where every key of a converted state dict came from, and what was left out."""

    layout: str
    why: str
    """What shows that the state dict has this layout."""
    path: tuple[str, ...]
    """Containers and prefixes that were opened, outermost first."""
    weights: str
    """``raw`` or ``averaged``."""
    mapped: Mapping[str, tuple[str, ...]]
    """New key -> the keys it was made from."""
    dropped: Mapping[str, str]
    """Key -> why it was left out."""
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return what happened, in a few lines."""
        opened = f", inside {' '.join(self.path)}" if self.path else ""
        sources = sum(map(len, self.mapped.values()))
        grounds = Counter(self.dropped.values())
        lines = [
            f"layout {self.layout} ({self.why}){opened}; {self.weights} weights",
            f"{sources} keys became {len(self.mapped)}, {len(self.dropped)} were left out",
            *(f"left out, {count}: {ground}" for ground, count in sorted(grounds.items())),
            *self.notes,
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the report JSON-plain."""
        return asdict(self)
