"""The prefixes that wrappers and training methods put before a model's keys, and the keys they leave beside it."""

from __future__ import annotations

from dataclasses import dataclass

from convstem.layouts.rows import Drop


@dataclass(frozen=True)
class Prefix:
    """A prefix of keys, stripped only if every key without it is listed here."""

    text: str
    outside: tuple[Drop, ...] = ()
    beside: tuple[str, ...] = ()
    """Keys without the prefix that belong to the model all the same, such as a classifier."""
    averaged: bool | None = None
    """Whether what it holds is averaged; None if the prefix does not tell."""
    layout: str | None = None


_NORMALISATION = tuple(Drop(f"normalize.{name}", "states the preprocessing, which goes into the config") for name in
                       ("mean", "std"))  # fmt: skip
_PREDICTOR = Drop("predictor.{*}", "the predictor is only for pre-training")
_TEXT = (
    Drop("text_model.{*}", "the text tower is not part of the image model"),
    Drop("text_projection.weight", "the text tower is not part of the image model"),
    Drop("logit_scale", "compares images with texts"),
    Drop("logit_bias", "compares images with texts"),
)

PREFIXES = (
    Prefix("module.", (Drop("n_averaged", "counts the averaging steps"),)),
    Prefix("_orig_mod."),
    Prefix(
        "base_encoder.",
        (Drop("momentum_encoder.{*}", "the averaged twin of the encoder; --use-ema takes it instead"), _PREDICTOR),
        averaged=False,
        layout="moco_v3",
    ),
    Prefix(
        "momentum_encoder.",
        (Drop("base_encoder.{*}", "the raw twin of the averaged encoder"), _PREDICTOR),
        averaged=True,
        layout="moco_v3",
    ),
    Prefix("base_model.", _NORMALISATION),
    Prefix("model.", _NORMALISATION),
    Prefix("vit.", beside=("classifier.{p}",)),
    Prefix("dinov2.", beside=("classifier.{p}",)),
    Prefix("dinov2_with_registers.", beside=("classifier.{p}",)),
    Prefix("vision_model.", _TEXT, beside=("classifier.{p}", "visual_projection.weight")),
    Prefix("opt/target/", (Drop("opt/state/{*}", "state of the optimizer"),)),
    Prefix("params/img/", (Drop("params/{*}", "the text tower is not part of the image model"),)),
    Prefix("params/", (Drop("opt/{*}", "state of the optimizer"),)),
)
