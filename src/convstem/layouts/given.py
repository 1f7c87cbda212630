"""What is known of a model besides its tensors: from the user, and from the file around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convstem.errors import ArgumentError
from convstem.layouts.unwrap import Unwrapped

FACTS = ("act_layer", "img_size", "norm_eps", "num_heads", "stem_strides")
"""What shapes do not tell, by timm's argument."""

PREPROCESSING = ("mean", "std")
"""What a checkpoint of weights alone does not tell either, by field of timm's pretrained cfg."""


@dataclass(frozen=True)
class Given:
    """What is known besides the shapes."""

    architecture: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """From the user, else from the file, by timm's argument."""
    hint: str | None = None
    """The architecture's name in the file, which may be another project's."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """By field of timm's pretrained cfg."""

    @classmethod
    def of(cls, architecture: str | None, facts: Mapping[str, Any], opened: Unwrapped) -> Given:
        """Join what the user says with what the file says; the user is right.

        Raises:
            ArgumentError: facts that nobody asks for.
        """
        unknown = sorted(set(facts) - {*FACTS, *PREPROCESSING})
        if unknown:
            raise ArgumentError(
                f"convert takes {', '.join(sorted((*FACTS, *PREPROCESSING)))} besides; got {', '.join(unknown)}"
            )
        known = {**opened.facts, **{key: value for key, value in facts.items() if value is not None}}
        hint = known.pop("architecture", None)
        preprocessing = {**opened.preprocessing, **{key: known.pop(key) for key in PREPROCESSING if key in known}}
        return cls(architecture, known, hint, preprocessing)
