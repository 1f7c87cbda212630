"""The files of a folded model state its licence and the folding."""

from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import ModelCard

import convstem
from convstem.hub.source import resolve
from convstem.publishing.derived import fold_to_folder
from tests.support.assertions import randomise


@pytest.mark.parametrize(("license", "stated"), [("mit", "mit"), (None, "other")])
def test_the_licence_is_that_of_the_weights(license: str | None, stated: str, tmp_path: Path) -> None:
    model: Any = randomise(timm.create_model("vit_nano4_convstem", num_classes=3)).eval()
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "license": license}
    folded = fold_to_folder(model, resolve("vit_nano4_convstem"), tmp_path / "out")
    card = ModelCard((tmp_path / "out" / "README.md").read_text())
    assert card.data.license == stated
    assert "with the BatchNorm of its stem folded into the convolutions: the same function" in card.text
    again = convstem.load(tmp_path / "out")
    assert again.patch_embed.stem_spec.norm == folded.patch_embed.stem_spec.norm == "none"
