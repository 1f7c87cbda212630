"""``--check`` runs the model of the checkpoint's own library, for any class in its config, or says why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as tf
from safetensors.torch import load_file

import convstem
from convstem.errors import CheckpointError, ConversionError, InvalidFileError
from convstem.files.checkpoint import read_checkpoint
from convstem.publishing.convert import convert_to_folder
from tests.support.assertions import randomise

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 16}
WIDE = {**SMALL, "intermediate_size": 96}
TEXT = {**WIDE, "vocab_size": 99, "num_hidden_layers": 1}
del TEXT["image_size"], TEXT["patch_size"]

COMPARED: dict[str, Callable[[], Any]] = {
    "CLIPModel": lambda: tf.CLIPModel(tf.CLIPConfig(vision_config=WIDE, text_config=TEXT, projection_dim=7)),
    "CLIPVisionModel": lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(**WIDE)),
    "CLIPVisionModelWithProjection": lambda: tf.CLIPVisionModelWithProjection(
        tf.CLIPVisionConfig(**WIDE, projection_dim=7)
    ),
    "Dinov2Backbone": lambda: tf.Dinov2Backbone(tf.Dinov2Config(**SMALL)),
    "Dinov2Model": lambda: tf.Dinov2Model(tf.Dinov2Config(**SMALL)),
    "Dinov2WithRegistersBackbone": lambda: tf.Dinov2WithRegistersBackbone(tf.Dinov2WithRegistersConfig(**SMALL)),
    "SiglipModel": lambda: tf.SiglipModel(tf.SiglipConfig(vision_config=WIDE, text_config=TEXT)),
    "SiglipVisionModel": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**WIDE)),
    "SiglipVisionModel without head": lambda: tf.SiglipVisionModel(
        tf.SiglipVisionConfig(**WIDE, vision_use_head=False)
    ),
    "ViTForImageClassification": lambda: tf.ViTForImageClassification(tf.ViTConfig(**WIDE, num_labels=4)),
    "ViTForMaskedImageModeling": lambda: tf.ViTForMaskedImageModeling(tf.ViTConfig(**WIDE)),
    "ViTModel": lambda: tf.ViTModel(tf.ViTConfig(**WIDE)),
    "ViTMSNForImageClassification": lambda: tf.ViTMSNForImageClassification(tf.ViTMSNConfig(**WIDE, num_labels=4)),
}


@pytest.mark.parametrize(("name", "title"), [("CLIP", "CLIP"), ("Siglip", "SigLIP")])
def test_a_classifier_on_the_mean_of_the_patches_is_refused(name: str, title: str) -> None:
    text = {**TEXT, "bos_token_id": 0, "eos_token_id": 1}
    config = getattr(tf, f"{name}Config")(vision_config=WIDE, text_config=text)
    state = getattr(tf, f"{name}ForImageClassification")(config).state_dict()
    with pytest.raises(ConversionError, match=f"a {title}.*its classifier reads the mean of the patches"):
        convstem.convert(state)
    rest = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    assert convstem.convert(rest, num_heads=3).sizes.depth == 2


def saved(model: Any, folder: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", COMPARED)
def test_outputs_are_compared(name: str, tmp_path: Path) -> None:
    source = saved(COMPARED[name](), tmp_path / "source")
    result = convert_to_folder(source, tmp_path / "out", check=True)
    assert result.check.startswith("equal to transformers's outputs within ")


@pytest.mark.parametrize("name", ["CLIPModel", "Dinov2Backbone", "SiglipVisionModel without head", "ViTModel"])
def test_a_difference_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(COMPARED[name](), tmp_path / "source")
    read = read_checkpoint

    def other(path: Path) -> dict[str, Any]:
        state = read(path)
        key = next(
            key for key in state if key.endswith("patch_embedding.weight") or "embeddings.projection.weight" in key
        )
        return {**state, key: state[key].flip(0)}

    monkeypatch.setattr("convstem.publishing.convert.read_checkpoint", other)
    with pytest.raises(CheckpointError, match="the converted model differs from transformers's by"):
        convert_to_folder(source, tmp_path / "out", check=True)


def test_what_hides_patches_at_random_is_not_compared(tmp_path: Path) -> None:
    model = tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**WIDE))
    result = convert_to_folder(saved(model, tmp_path / "source"), tmp_path / "out", check=True)
    assert result.check == "not compared: ViTMAEForPreTraining hides patches at random"


@pytest.mark.parametrize(
    ("named", "said"), [("NoSuchModel", "no model NoSuchModel"), ("pipeline", "no model pipeline")]
)
def test_a_class_that_is_none(named: str, said: str, tmp_path: Path) -> None:
    source = saved(COMPARED["ViTModel"](), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": [named]}))
    assert convert_to_folder(source, tmp_path / "out", check=True).check == f"not compared: transformers has {said}"


def test_a_model_that_its_library_cannot_run(tmp_path: Path) -> None:
    source = saved(COMPARED["ViTModel"](), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(CheckpointError, match="transformers cannot run its own model of this checkpoint"):
        convert_to_folder(source, tmp_path / "out", check=True)


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    source = saved(COMPARED["ViTModel"](), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["ResNetModel"]}))
    with pytest.raises(
        CheckpointError, match="gives .., 5, 24. where transformers's gives .., 2048, 1, 1.; nothing was w"
    ):
        convert_to_folder(source, tmp_path / "out", check=True)


@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "ViTMSNForImageClassification"])
def test_the_documented_recipe(name: str, tmp_path: Path) -> None:
    """Heads of any size: none, a projection, other classes."""
    source = saved(COMPARED[name](), tmp_path / "source")
    converted = convstem.convert(load_file(source / "model.safetensors"), num_heads=3)
    model = timm.create_model(converted.architecture, **converted.model_args)
    model.load_state_dict(converted)
    assert model.num_classes == converted.sizes.num_classes


def test_the_recipe_for_other_channels_and_classes() -> None:
    for args in ({"num_classes": 0}, {"num_classes": 7}, {"in_chans": 1}, {}):
        state = timm.create_model("vit_tiny_patch16_224", depth=2, **args).state_dict()
        converted = convstem.convert(state, num_heads=3)
        assert {name: converted.model_args.get(name) for name in args} == args
        timm.create_model(converted.architecture, **converted.model_args).load_state_dict(converted)


def torchvisions(stem: bool) -> Any:
    """Return a small torchvision ViT."""
    from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

    layers = [ConvStemConfig(8, 3, 2), ConvStemConfig(16, 3, 2), ConvStemConfig(24, 3, 2), ConvStemConfig(24, 3, 2)]
    model = VisionTransformer(32, 16, 2, 3, 24, 96, num_classes=5, conv_stem_configs=layers if stem else None)
    return randomise(model)


@pytest.mark.parametrize("stem", [False, True])
def test_torchvisions_outputs_are_compared(stem: bool, tmp_path: Path) -> None:
    source = tmp_path / "source.pth"
    torch.save(torchvisions(stem).state_dict(), source)
    sizes = {"num_heads": 3} | ({"stem_strides": (2, 2, 2, 2)} if stem else {})
    result = convert_to_folder(source, tmp_path / "out", check=True, **sizes)
    assert result.check.startswith("equal to torchvision's outputs within ")
    assert result.rows()


def test_a_state_dict_alone_names_no_class_to_compare_with(tmp_path: Path) -> None:
    saved(tf.ViTModel(tf.ViTConfig(**WIDE)), tmp_path / "source")
    alone = (tmp_path / "source" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    result = convert_to_folder(alone, tmp_path / "out", check=True, num_heads=3)
    assert result.check == "not compared: there is no config.json of transformers beside the weights"


def test_the_layout_that_a_config_names(tmp_path: Path) -> None:
    source = saved(COMPARED["ViTModel"](), tmp_path / "source")
    assert ("layout", "transformers_vit: its config says so") in convert_to_folder(source, tmp_path / "out").rows()
    with pytest.raises(InvalidFileError, match="config.json is from transformers.*convstem convert FOLDER --out NEW"):
        convstem.load(source)


def test_timms_own_keys_leave_nothing_to_compare(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=2).state_dict(), tmp_path / "vit.pth")
    assert convert_to_folder(tmp_path / "vit.pth", tmp_path / "out", check=True).check.startswith("nothing to compare")


@pytest.mark.parametrize("epsilon", [1e-6, 1e-12, 1e-3])
def test_a_transplant_keeps_the_epsilon_of_its_source(epsilon: float, tmp_path: Path) -> None:
    source = saved(tf.ViTModel(tf.ViTConfig(**WIDE, layer_norm_eps=epsilon)), tmp_path / "source")
    result = convert_to_folder(source, tmp_path / "out", transplanted=True)
    assert result.model_args.get("norm_eps", 1e-6) == epsilon
    assert convstem.load(tmp_path / "out").norm.eps == epsilon
