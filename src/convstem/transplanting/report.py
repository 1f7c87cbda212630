"""What a transplant preserves, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """How one layer was filled."""

    needed: int
    """Channels that would carry everything: the previous layer's contents times stride squared."""
    rank: int
    """Contents carried."""
    width: int
    """Channels the stem has."""
    kind: str
    """``identity`` (everything is carried), ``embedding`` (what the embedding takes from it is) or ``reduced``."""
    lossless: bool
    """Whether nothing the embedding needs is lost here."""
    split: bool
    """Whether contents are carried with both signs: no shift, and good for every input."""
    shift_min: float
    """Smallest shift of a content."""
    shift_max: float
    """Largest."""

    def __str__(self) -> str:
        """Describe the layer in a few words."""
        loss = "" if self.kind == "identity" else ", lossless" if self.lossless else ", lossy"
        sign = "split by sign" if self.split else f"shifted by {self.shift_min:.3g} to {self.shift_max:.3g}"
        return f"{self.kind}{loss}, {self.rank} of {self.needed} contents in {self.width} channels, {sign}"


RESIZED_NOTE = (
    "The filters were resized from patches of {0} pixels by pseudo-inverse: the function is the same where every patch "
    "of an image is resized by itself, and approximately so for photographs that are resized as a whole; the grid and "
    "the position embedding are the source's."
)
"""What there is to say about a source of another patch size."""


@dataclass(frozen=True)
class TransplantReport:
    """What a transplant preserves."""

    layers: tuple[LayerReport, ...]
    """One record for each layer before the 1x1."""
    exact: bool
    """Whether for all pixels in range the stem is the embedding, up to round-off: every layer is lossless, and
    none is shifted by the statistics only."""
    predicted_relative_error: float
    """Root-mean-square error over root-mean-square of the embedding, for the statistics, before rounding."""
    resized_from: int | None = None
    """Patch size of the source if it was resized before the transplant: then all of this is about resized filters."""

    @property
    def scope(self) -> str:
        """For which inputs: ``every input`` where all layers carry both signs, else ``pixels in range``."""
        return "every input" if all(layer.split for layer in self.layers) else "pixels in range"

    def outcome(self) -> str:
        """Return what a user has to know, in a sentence or two."""
        kind = "exact" if self.exact else "approximate"
        resized = "" if self.resized_from is None else RESIZED_NOTE.format(self.resized_from) + " "
        return (
            f"{resized}The transplant is {kind} for {self.scope}: the predicted relative error of the patch embedding "
            f"is {self.predicted_relative_error:.1e} before rounding."
        )

    def summary(self) -> str:
        """Return the report as one paragraph, with a clause for each layer."""
        layers = "; ".join(f"layer {index} is {layer}" for index, layer in enumerate(self.layers))
        return f"{self.outcome()} In detail, {layers}."
