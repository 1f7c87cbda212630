"""What torchvision sees: one builder and one ``WeightsEnum`` per architecture. Never imports timm.

Annotations here are evaluated (no ``from __future__ import annotations``) because torchvision finds a builder's
weights through the object in its ``weights`` annotation.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torchvision.models import Weights, WeightsEnum

from convstem.errors import ArgumentError
from convstem.registry.tables import Rows, rows, weights_rows
from convstem.upstream import torchvision_legacy_interface

HOME = "torchvision.models.convstem"
"""The builders' ``__module__``, an alias of this module: ``list_models(torchvision.models)`` lists the builders of
modules directly below it, and pickle looks a builder up there."""

_SPELLING = {"vit": "ViT", "vitc": "ViTC", "convstem": "ConvStem", "nano": "Nano", "ti": "Ti"}


class ConvStemWeights(WeightsEnum):
    """Base of our weights enums: members load safetensors in timm's layout and return torchvision's."""

    def get_state_dict(self, progress: bool = True, check_hash: bool = False, stem: Any = None) -> dict[str, Any]:
        """Return the state dict in torchvision's layout.

        Args:
            progress: show a progress bar while downloading.
            check_hash: compare the file's sha256 with the registry's.
            stem: the ``StemSpec`` to transplant into; default: the architecture's own.
        """
        from convstem.hosts.torchvision_weights import load_state_dict  # heavy, so only when weights are loaded

        return load_state_dict(self.value.entry, progress, check_hash, stem)


class EntryWeights(Weights):
    """torchvision's record of a weights entry, filled on first read: every import of torchvision creates all records.

    Args:
        entry: ``architecture.tag``.
    """

    def __init__(self, entry: str) -> None:
        self.entry = entry

    @cached_property
    def _record(self) -> Weights:
        from convstem.hosts.torchvision_weights import make_weights

        return make_weights(self.entry)

    url = property(lambda self: self._record.url)
    transforms = property(lambda self: self._record.transforms)
    meta = property(lambda self: self._record.meta)

    def __eq__(self, other: object) -> bool:
        """Compare names; enums need this when they are created and copied."""
        return isinstance(other, EntryWeights) and self.entry == other.entry

    def __hash__(self) -> int:
        """Hash the name."""
        return hash(self.entry)


def enum_name(torchvision_name: str) -> str:
    """Return the enum's name for a builder's, for example ``ViT_B_16_ConvStem_Weights`` for ``vit_b_16_convstem``."""
    parts = [_SPELLING.get(part, part.upper()) for part in torchvision_name.split("_")]
    return "_".join([*parts, "Weights"])


def make_enum(torchvision_name: str, weights: Rows) -> type[ConvStemWeights]:
    """Return the weights enum of an architecture: one upper-case member per tag; ``DEFAULT`` is the first.

    Args:
        torchvision_name: of the architecture.
        weights: its rows by ``architecture.tag``; rows without a head are left out, since torchvision's ViT has one.
    """
    entries = [entry for entry, row in weights.items() if row["num_classes"]]
    members = {entry.partition(".")[2].upper().replace("-", "_"): EntryWeights(entry) for entry in entries}
    if members:
        members["DEFAULT"] = next(iter(members.values()))
    return ConvStemWeights(enum_name(torchvision_name), members, module=__name__)


def make_builder(name: str, row: Mapping[str, Any], enum: type[ConvStemWeights]) -> Callable[..., Any]:
    """Return the function torchvision registers: torchvision's own builder interface for one architecture.

    Args:
        name: timm name of the architecture.
        row: its row.
        enum: its weights.
    """

    def builder(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> Any:
        from convstem.models.torchvision_vit import create_torchvision_model  # heavy, so only when a model is built

        return create_torchvision_model(name, verify(enum, weights), progress, **kwargs)

    builder.__name__ = builder.__qualname__ = row["torchvision"]
    builder.__module__ = HOME
    builder.__doc__ = f"{row['torchvision']}: conv-stem ViT. {row.get('source', '')}"
    builder.__annotations__["weights"] = enum | None
    legacy = torchvision_legacy_interface(weights=("pretrained", getattr(enum, "DEFAULT", None)))
    return legacy(builder)


def verify(enum: type[ConvStemWeights], weights: Any) -> ConvStemWeights | None:
    """Return the enum member for ``weights`` (a member, its name or None).

    Raises:
        ArgumentError: the enum has no such member; the message lists its members.
        TypeError: a member of another enum (torchvision's own check).
    """
    try:
        return enum.verify(weights)
    except KeyError:
        choices = ", ".join(sorted(enum.__members__)) or "none yet; pass weights=None for random initialisation"
        raise ArgumentError(f"{enum.__name__} has no weights {weights!r}; it has: {choices}") from None


def builders() -> tuple[dict[str, Callable[..., Any]], dict[str, type[ConvStemWeights]]]:
    """Create the builders and enums as attributes of this module; return both by torchvision name."""
    module, weights = sys.modules[__name__], weights_rows()
    sys.modules[HOME] = module
    functions, enums = {}, {}
    for name, row in rows("architectures").items():
        ours = row.get("torchvision")
        if ours is None:
            continue
        enum = getattr(module, enum_name(ours), None) or make_enum(ours, weights.get(name, {}))
        function = getattr(module, ours, None) or make_builder(name, row, enum)  # once: pickle compares identities
        setattr(module, enum.__name__, enum)
        setattr(module, ours, function)
        functions[ours], enums[ours] = function, enum
    return functions, enums
