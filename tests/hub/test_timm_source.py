"""Errors for timm models that do not exist or cannot be fetched."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm

import convstem
from convstem.errors import ArgumentError, CheckpointError, HubError, MissingPathError, UnknownModelError
from convstem.hub.model import create_source

TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_a_name_with_weights(hub_file: Callable[..., None]) -> None:
    model = timm.create_model(TINY)
    hub_file(f"timm/{TINY}", model.state_dict())
    created = create_source(TINY)
    assert not created.training
    assert (created.pos_embed == model.pos_embed).all()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "vit_base_patch16_223",
            UnknownModelError,
            "timm has no model 'vit_base_patch16_223'; did you mean",
        ),
        ("nosuchmodel", UnknownModelError, r"timm has no model 'nosuchmodel'; timm.list_models\(\) lists"),
        ("vit_tiny_patch16_224.laion", UnknownModelError, "has no pretrained tag 'laion'; it has augreg_in21k, augreg"),
        ("vit_small_patch16_36x1_224", ArgumentError, "no pretrained weights for vit_small_patch16_36x1_224: choose"),
        ("vit_large_patch16_224", HubError, "switched off.*timm/vit_large_patch16_224"),
        ("hf-hub:me/nothing", HubError, "switched off.*me/nothing"),
        ("me/nothing", HubError, "switched off.*me/nothing"),
        ("local-dir:nowhere", MissingPathError, "there is no file or folder nowhere: transplant takes the name of"),
        ("local-dir:.", MissingPathError, "is not the folder of a timm model: it has no config.json"),
    ],
)
def test_what_cannot_be_had(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convstem.transplant(name)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    timm.models.save_for_hf(timm.create_model("vit_tiny_patch16_224", depth=1), tmp_path, safe_serialization=True)
    assert create_source(f"local-dir:{tmp_path}")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="timm cannot load local-dir:.*No suitable checkpoints"):
        create_source(f"local-dir:{tmp_path}")
