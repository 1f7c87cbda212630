"""What images a checkpoint's model was fed: told by the file, a name in it, or its layout; or assumed, and said so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from convstem.layouts.architecture import Given
from convstem.layouts.rows import IMAGENET, Layout
from convstem.layouts.timm import Sizes

_FAMILIES = ("deit", "dino", "ibot", "mae", "moco", "msn")
"""How the names of models begin that were all trained on ImageNet's mean and std, whatever project writes them."""


def preprocessing(layout: Layout, sizes: Sizes, given: Given, dropped: Collection[str]) -> Mapping[str, Any]:
    """Return what is known of the images, by field of timm's pretrained cfg; the rest is the architecture's own.

    Args:
        layout: where the checkpoint comes from.
        sizes: what the shapes say.
        given: what the user and the file say.
        dropped: keys that were left out, such as those of MAE's decoder.
    """
    return {**layout.preprocessing, **_told_by(sizes, given, dropped), **given.preprocessing}


def assumptions(layout: Layout, sizes: Sizes, given: Given, dropped: Collection[str]) -> list[str]:
    """Return a sentence for everything that neither file nor user says, and that is taken as usual; see above."""
    notes = [note for name, note in layout.assumed.items() if name not in given.arguments]
    told = {**_told_by(sizes, given, dropped), **given.preprocessing}
    if {"mean", "std"} <= set(told) or (layout.preprocessing and not layout.fed_differently) or given.architecture:
        return notes
    usual = f"{layout.preprocessing['mean'][0]:g}" if layout.preprocessing else "those usual for the architecture"
    return [
        *notes,
        f"its mean and std are assumed to be {usual}, for nothing in the file says what images it was trained with: "
        "mean= and std= (--mean, --std on the command line) say it",
    ]


def _told_by(sizes: Sizes, given: Given, dropped: Collection[str]) -> Mapping[str, Any]:
    """Return what a name in the file says, or what only one family of models has."""
    name = str(given.hint or "").removeprefix("timm/")
    if name.startswith(_FAMILIES):
        return IMAGENET
    if any(key.startswith(("decoder_", "decoder.")) for key in dropped):  # MAE's
        return IMAGENET
    if sizes.layer_scale and sizes.patch_size == 14:  # DINOv2's
        return IMAGENET
    return _of_timms(name) if name else {}  # torchvision's weights are read without timm


def _of_timms(name: str) -> Mapping[str, Any]:
    """Return the mean and std of a name of timm's, with or without tag; nothing for another project's name."""
    from timm.models import get_pretrained_cfg, is_model

    base = name.partition(".")[0]
    if not is_model(base):
        return {}
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        cfg = get_pretrained_cfg(base)
    return {"mean": cfg.mean, "std": cfg.std} if cfg else {}
