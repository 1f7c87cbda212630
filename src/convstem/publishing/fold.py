"""Writes a folded model as a folder that timm, the Hub and ``hf-hub:`` understand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convstem.hub.source import Source
from convstem.inference.fold import fold
from convstem.publishing.cards.facts import facts_of_config
from convstem.publishing.cards.markdown import code
from convstem.publishing.cards.render import render
from convstem.publishing.folder import check_new, finish, save, write_folder
from convstem.registry.licenses import license_or_other


def fold_to_folder(model: Any, source: Source, folder: Path, overwrite: bool = False) -> Any:
    """Fold a timm model and write ``config.json``, ``model.safetensors`` and a model card; return the folded model.

    Args:
        model: one of our timm models in eval mode.
        source: where it came from, for the card.
        folder: where to write; created if needed.
        overwrite: replace the model that is there.

    Raises:
        ArgumentError, ExistingPathError: see ``check_new``.
        ConvStemError: see ``convstem.fold``; nothing is written.
    """
    check_new(folder, source, overwrite)
    folded: Any = fold(model)
    license = license_or_other(folded.pretrained_cfg.get("license"))
    description = (
        f"{code(source.short)} with the BatchNorm of its stem folded into the convolutions: the same function."
    )

    def write(staged: Path) -> None:
        save(folded, staged)
        finish(staged, license, lambda config: render(facts_of_config(config, None, license, description=description)))

    write_folder(folder, write, overwrite)
    return folded
