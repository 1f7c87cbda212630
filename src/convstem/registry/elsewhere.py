"""Trained weights that other projects publish, for architectures of ours. No torch in this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from convstem.errors import RegistryError
from convstem.registry import catalog
from convstem.registry.names import rows
from convstem.registry.tables import make_rows


@dataclass(frozen=True)
class ElsewhereSpec:
    """Weights that another project publishes in its own layout: a row of ``registry/elsewhere.json``.

    They are no pretrained tag: a user downloads the file and converts it.
    """

    name: str
    """``architecture.tag``."""
    published_as: str
    """The name they have there."""
    address: str
    """The page of the project."""
    file: str
    """Where its own loader puts the file."""
    license: str
    license_source: str
    dataset: str
    metrics: Mapping[str, float]
    """Published figures, in per cent."""
    metrics_source: str
    sha256: str | None = None
    """Content hash of the file; None as long as nobody has looked at it."""

    @property
    def architecture(self) -> str:
        """The architecture's timm name."""
        return self.name.split(".", 1)[0]

    @property
    def command(self) -> str:
        """What turns the downloaded file into a verified folder."""
        options = f"--architecture {self.architecture} --license {self.license}"
        return f"convstem convert {self.file} --out {self.name} {options}"


@cache
def elsewhere() -> Mapping[str, ElsewhereSpec]:
    """Return the weights that other projects publish, by ``architecture.tag``; they are no pretrained tags.

    Raises:
        RegistryError: a bad row, or an entry for an architecture that does not exist.
    """
    file = "elsewhere.json"
    entries = make_rows(file, rows("elsewhere"), ElsewhereSpec)
    for entry in entries.values():
        if entry.architecture not in catalog.models():
            raise RegistryError(f"{file}: [{entry.name}]: {catalog.unknown_name(entry.architecture)}")
    return entries
