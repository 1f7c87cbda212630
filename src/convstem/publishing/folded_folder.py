"""Writes a folded model as a folder that timm, the Hub and ``hf-hub:`` understand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convstem.errors import ExistingPathError
from convstem.files.paths import path_errors
from convstem.files.staging import replacing
from convstem.hub.source import CARD, CONFIG, WEIGHTS
from convstem.inference.fold import fold
from convstem.publishing.cards.facts import facts_of_config
from convstem.publishing.cards.render import render
from convstem.publishing.folder import finish_config, save


def fold_to_folder(model: Any, source: str, folder: Path) -> Any:
    """Fold a timm model and write ``config.json``, ``model.safetensors`` and a model card; return the folded model.

    Args:
        model: one of our timm models in eval mode.
        source: where it came from, for the card.
        folder: where to write; created if needed.

    Raises:
        ExistingPathError: the folder holds weights already.
        ConvStemError: see ``convstem.fold``; nothing is written.
    """
    if (folder / WEIGHTS).exists():
        raise ExistingPathError(f"{folder} holds {WEIGHTS} already: name another folder to write")
    folded: Any = fold(model)
    license = folded.pretrained_cfg.get("license") or "other"
    description = f"`{source}` with the BatchNorm of its stem folded into the convolutions: the same function."
    with path_errors("write", folder), replacing(folder, last=CONFIG) as staged:
        save(folded, staged)
        config = finish_config(staged, license)
        card = render(facts_of_config(config, None, license, description=description))
        (staged / CARD).write_text(card, encoding="utf-8")
    return folded
