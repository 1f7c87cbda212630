"""For image models of other libraries, transplant names the command that takes their weights, and it works."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import convstem
from convstem.errors import UnsupportedModelError
from convstem.publishing.convert import convert_to_folder
from tests.support.assertions import randomise, relative_error

SMALL: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 224,
                         "patch_size": 16, "intermediate_size": 96}  # fmt: skip
KNOWN = {
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL)),
    "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL)),
    "clip": lambda: transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**SMALL)),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_transformers_models_are_sent_to_the_command(name: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"is a transformers model; .*convert FOLDER --out OUT --transplant"
    ):
        convstem.transplant(KNOWN[name]())


def test_the_command_does_it(tmp_path: Path) -> None:
    model = randomise(KNOWN["clip"]()).eval()
    model.save_pretrained(tmp_path / "theirs")
    convert_to_folder(tmp_path / "theirs", tmp_path / "ours", transplanted=True)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(x).image_embeds
        assert relative_error(convstem.load(tmp_path / "ours")(x), expected) < 1e-4
        assert relative_error(randomise(convstem.load(tmp_path / "ours"))(x), expected) > 0.1  # negative control


@pytest.mark.skipif(not hasattr(transformers, "DINOv3ViTModel"), reason="transformers has no DINOv3 yet")
def test_dinov3_of_transformers_is_sent_to_timms() -> None:
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SMALL))
    with pytest.raises(
        UnsupportedModelError, match=r"without a layout in convstem: .*transplant\('vit_small_patch16_dinov3'\)"
    ):
        convstem.transplant(model)
