"""Mean and std come from the file, or from a feature that only DINOv2 has; an assumption is reported."""

import argparse
from typing import Any

import pytest
import timm
import torch
import transformers

import convstem
from convstem.hub.config import read_json
from convstem.registry.records import IMAGENET_MEAN, IMAGENET_STD

HALF = (0.5, 0.5, 0.5)
IMAGENET = IMAGENET_MEAN, IMAGENET_STD


def plain(**kwargs: Any) -> dict[str, Any]:
    sizes = {"depth": 2, "img_size": 32, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **kwargs}).state_dict()


def images(content: dict[str, Any], **facts: Any) -> tuple[Any, Any, list[str]]:
    """Return mean, std and the assumptions."""
    converted = convstem.convert(content, **{"num_heads": 3, **facts})
    cfg = converted.pretrained_cfg
    return cfg.get("mean"), cfg.get("std"), [note for note in converted.report.notes if "assumed" in note]


def test_nothing_is_known() -> None:
    mean, std, notes = images(plain())
    assert (mean, std) == (None, None)  # the architecture's defaults
    assert len(notes) == 1
    assert "not in the file but assumed: its mean and std (as usual for the architecture). Set mean and std" in notes[0]
    assert "--mean, --std" in notes[0]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("deit_tiny_patch16_224", IMAGENET),
        ("deit_base_distilled", IMAGENET),
        ("mae_vit_base_patch16", IMAGENET),
        ("dino_vits16", IMAGENET),
        ("vit_tiny_patch16_224", (HALF, HALF)),
        ("vit_tiny_patch16_224.augreg_in21k", (HALF, HALF)),
        ("vit_base_patch16_224.dino", IMAGENET),
        ("vit_base_patch16_224.nosuchtag", (HALF, HALF)),
        ("timm/vit_base_patch16_224.mae", IMAGENET),
    ],
)
@pytest.mark.parametrize("field", ["arch", "args"])
def test_a_name_in_the_file(field: str, named: str, expected: Any) -> None:
    says: dict[str, Any] = {"arch": named} if field == "arch" else {"args": argparse.Namespace(model=named)}
    mean, std, notes = images({"state_dict": plain(), **says})
    assert (tuple(mean), tuple(std)) == expected
    assert notes == []


def test_a_name_of_nobodys() -> None:
    assert len(images({"state_dict": plain(), "arch": "vit_base_patch16"})[2]) == 1


def test_layer_scale_and_patch_14_are_dinov2() -> None:
    mean, std, notes = images(plain(patch_size=14, img_size=28, init_values=1e-5))
    assert ((mean, std), notes) == (IMAGENET, [])
    assert len(images(plain(init_values=1e-5))[2]) == 1  # DeiT III also has LayerScale, with patches of 16
    assert len(images(plain(patch_size=14, img_size=28))[2]) == 1


def test_maes_decoder() -> None:
    assert images({**plain(), "decoder_embed.weight": torch.ones(1, 1)})[0] == IMAGENET_MEAN


def test_the_user_is_right() -> None:
    facts = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert images({"state_dict": plain(), "arch": "deit_tiny_patch16_224"}, **facts) == (
        facts["mean"],
        facts["std"],
        [],
    )
    assert images(plain(), **facts)[2] == []
    assert len(images(plain(), mean=facts["mean"])[2]) == 1
    assert images(plain(), architecture="deit_tiny_patch16_224")[2] == []


SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 16}


def test_vits_of_transformers_were_fed_differently() -> None:
    state = transformers.ViTModel(transformers.ViTConfig(**SMALL, intermediate_size=96)).state_dict()
    mean, _, notes = images(state)
    assert mean == HALF
    assert "its mean and std (0.5). Set mean and std yourself (--mean, --std" in notes[0]


@pytest.mark.parametrize("kind", ["ViTMSN", "ViTMAE"])
def test_types_of_transformers_that_are_vits_of_imagenet(kind: str, tmp_path: Any) -> None:
    from convstem.publishing.convert import convert_to_folder

    config = getattr(transformers, f"{kind}Config")(**SMALL, intermediate_size=96)
    model = transformers.ViTMAEForPreTraining(config) if kind == "ViTMAE" else transformers.ViTMSNModel(config)
    model.save_pretrained(tmp_path / "source")
    result = convert_to_folder(tmp_path / "source", tmp_path / "out")
    assert not [note for note in result.report.notes if "assumed" in note]
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert tuple(loaded.pretrained_cfg["mean"]) == IMAGENET_MEAN


def test_the_activation_of_a_bare_clip_is_said() -> None:
    tower = transformers.CLIPVisionConfig(**SMALL, intermediate_size=96)
    state = transformers.CLIPVisionModel(tower).state_dict()
    assert "assumed to be QuickGELU, as in OpenAI's CLIP; for GELU, as in LAION's" in images(state)[2][0]
    assert images(state, act_layer="gelu")[2] == []
    converted = convstem.convert(state, num_heads=3, act_layer="gelu")
    assert "quickgelu" not in converted.architecture


def test_an_assumption_is_on_the_card(tmp_path: Any) -> None:
    from click.testing import CliRunner

    from convstem.cli.main import main

    torch.save(plain(), tmp_path / "w.pth")
    ours = timm.create_model("vit_nano4_convstem", num_classes=3).state_dict()
    torch.save(ours, tmp_path / "ours.pth")
    for name, options in (("w", []), ("w", ["--transplant"]), ("ours", [])):
        out = tmp_path / f"{name}{len(options)}"
        command = ["convert", str(tmp_path / f"{name}.pth"), "--out", str(out), "--num-heads", "3", *options]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        assert "Not in the file but assumed: its mean and std" in (out / "README.md").read_text()
        assert "not in the file but assumed: its mean and std" in done.output
        said = CliRunner().invoke(main, [*command, "--overwrite", "--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6"])
        assert said.exit_code == 0, said.output
        assert "assumed" not in (out / "README.md").read_text()
        assert "mean 0.1, 0.2, 0.3" in (out / "README.md").read_text() or name == "w"
        assert read_json(out / "config.json")["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
