"""The settings of a training, and their flags."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from timm.utils import ParseKwargs

BFLOAT16 = {"amp": True, "fused_attn": False}
"""1.5 times as fast on processors with bfloat16 arithmetic (Zen 4, Sapphire Rapids), slower on others."""


def option(default: Any, text: str) -> Any:
    """Return a field with the help text of its flag."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Everything that the result depends on, as plain JSON data; named as in timm's train.py, if it has the flag.

    Raises:
        ValueError: values that contradict each other, or an odd batch size with mixing.
    """

    model: str = option("vit_nano4_convstem", "a name in timm or experiments/cifar10/models.py")
    model_kwargs: Mapping[str, Any] = field(default_factory=dict, metadata={"help": "NAME=VALUE ... for the model"})
    epochs: int = option(8, "epochs of the schedule")
    batch_size: int = option(128, "images per step; an epoch leaves out an incomplete batch")
    opt: str = option("stackedmuon", "timm's name of the optimizer, or stackedmuon: timm's muon, faster on processors")
    lr: float = option(5e-3, "peak learning rate")
    momentum: float = option(0.9, "of optimizers that have one")
    weight_decay: float = option(0.05, "not for norms, biases, class token and position embedding, as in timm")
    layer_decay: float = option(0.0, "factor of the rate from each layer to the one below, as in timm; 0: none")
    clip_grad: float = option(0.0, "largest norm of the gradient; 0: unlimited")
    sched: str = option("cosine", "timm's name of the schedule; with poly and decay rate 1 it is linear")
    warmup_epochs: float = option(1.0, "epochs of linear warm-up, within the schedule")
    crop: int = option(4, "pixels by which a crop may be shifted each way, over reflected borders")
    flip: str = option("alternating", "alternating: every other epoch, at random in the first; random; none")
    smoothing: float = option(0.1, "label smoothing")
    mixup: float = option(0.0, "alpha of mixup; 0: none")
    cutmix: float = option(0.0, "alpha of CutMix; 0: none")
    mixup_prob: float = option(1.0, "share of the batches that are mixed")
    mixup_off_epoch: int = option(0, "no mixing from this epoch on; 0: to the end")
    model_ema_decay: float = option(0.0, "of the averaged weights, which are evaluated; 0: none")
    epoch_steps: int = option(0, "steps of an epoch; 0: as many as the images fill")
    size: int = option(0, "side in pixels to which images are resized; 0: as they are")
    small_epochs: int = option(0, "first epochs on smaller images")
    small_size: int = option(24, "their side in pixels")
    teacher_share: float = option(0.0, "share of the teacher's probabilities in the target")
    temperature: float = option(1.0, "of the teacher's probabilities")
    views: int = option(0, "augmented views of each image, used in turn, with kept teacher logits; even")
    attack_steps: int = option(0, "adversarial training: steps of the attack on each batch; 0: none")
    attack_radius: float = option(8.0, "of the attack: largest change of a pixel, in 1/255")
    amp: bool = option(False, "bfloat16 autocast")
    fused_attn: bool = option(True, "attention in one operation; its backward pass is slow in bfloat16 on CPUs")
    train_images: int = option(0, "first images of each class, in all; 0: all")
    holdout: int = option(0, "evaluate on the last training images of each class, in all, instead of the test images")
    eval_interval: int = option(0, "evaluate after this many epochs, for a curve; 0: after the last only")
    seed: int = option(0, "of initialisation, order and augmentation")

    def __post_init__(self) -> None:
        """Check what the flags' types cannot."""
        if self.flip not in (choices := ("alternating", "none", "random")):
            raise ValueError(f"flip must be one of {', '.join(choices)}; got {self.flip!r}")
        if self.teacher_share and (self.views < 2 or self.views % 2):
            raise ValueError(f"a teacher needs an even number of views, because flips alternate; got {self.views}")
        if self.mixed and self.batch_size % 2:
            raise ValueError(f"timm's Mixup needs an even batch size; got {self.batch_size}")
        if self.layer_decay and self.opt == "stackedmuon":
            raise ValueError("layer_decay needs a timm optimizer, such as adamw or sgd; got stackedmuon")

    @property
    def mixed(self) -> bool:
        """Whether images are mixed."""
        return bool(self.mixup or self.cutmix)


def add_flags(parser: argparse.ArgumentParser, defaults: Settings | None = None) -> None:
    """Add a flag for every field."""
    defaults = defaults or Settings()
    for row in fields(Settings):
        flag, value = f"--{row.name.replace('_', '-')}", getattr(defaults, row.name)
        how: dict[str, Any] = {"type": type(value)}
        if isinstance(value, bool):
            how = {"action": argparse.BooleanOptionalAction}
        elif isinstance(value, Mapping):
            how = {"nargs": "*", "action": ParseKwargs}
        parser.add_argument(flag, default=value, help=row.metadata["help"], **how)


def from_flags(args: argparse.Namespace) -> Settings:
    """Return the settings of a parsed command line."""
    return Settings(**{row.name: getattr(args, row.name) for row in fields(Settings)})


def precision_of(settings: Mapping[str, Any]) -> str:
    """Return the precision of a record of settings, for a report; older records have none."""
    return "bfloat16 autocast" if settings.get("amp") else "float32"


def changes(record: Mapping[str, Any], settings: Settings) -> str:
    """Return how a training's record differs from settings, as text; fields missing in the record have defaults."""
    return differences({**asdict(Settings()), **record}, asdict(settings))


def differences(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return the differences between two records of settings, as text; empty if there are none."""
    found, settings = (json.loads(json.dumps(dict(record))) for record in (found, settings))  # tuples become lists
    names = sorted(name for name in {*found, *settings} if found.get(name) != settings.get(name))
    return "; ".join(f"{name} {found.get(name)!r}, not {settings.get(name)!r}" for name in names)
