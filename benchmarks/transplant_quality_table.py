"""The table of benchmarks/transplant_quality.py: a row with its bar, and printing rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: str
    bar: float | None
    """Largest allowed value (``least``: smallest); None: for information."""
    natural: float
    random: float | None = None
    judged: tuple[str, ...] = ("natural", "random")
    """Columns the bar is about; the others are printed in brackets."""
    form: str = "{:.1e}"
    least: bool = False
    note: str = ""

    @property
    def within(self) -> bool:
        """Whether the judged values meet the bar."""
        values = [value for name in self.judged if (value := getattr(self, name)) is not None]
        return self.bar is None or all(value >= self.bar if self.least else value <= self.bar for value in values)

    def _cell(self, name: str) -> str:
        value = getattr(self, name)
        text = "-" if value is None else self.form.format(value)
        return text if value is None or self.bar is None or name in self.judged else f"({text})"

    def __str__(self) -> str:
        """Return the line."""
        bar = "-" if self.bar is None else (">= " if self.least else "<= ") + self.form.format(self.bar)
        within = "-" if self.bar is None else "yes" if self.within else "NO"
        return (
            f"{self.case:<70}| {bar:<12}| {self._cell('natural'):>18} | {self._cell('random'):>17} | {within:<6}"
            f"| {self.note}"
        ).rstrip(" |")


HEADER = f"{'case':<70}| {'bar':<12}| {'measured (natural)':>18} | {'measured (random)':>17} | within"


class Table:
    """Prints rows as they come and remembers whether all bars were met."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def section(self, title: str) -> None:
        """Start a part of the table."""
        print(f"\n{title}\n\n{HEADER}\n{'-' * len(HEADER)}", flush=True)

    def add(self, rows: Sequence[Row]) -> None:
        """Print rows."""
        for row in rows:
            print(row, flush=True)
            if not row.within:
                self.missed.append(row.case)
