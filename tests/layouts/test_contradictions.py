"""Contradictory state dicts are refused with the misfit named. The facts in consistent ones are used."""

import pytest
import timm
import torch
import transformers
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD

import convstem
from convstem.errors import ArgumentError, ConversionError
from convstem.layouts.rows import JOIN_QKV
from convstem.layouts.unwrap import _is_size
from tests.support import reference_vits as vits

State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    return timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=5).state_dict()


@pytest.mark.parametrize(
    ("tokens", "words"), [(6, "6 positions are no square grid, with 1 class and register tokens"), (5, None)]
)
def test_positions_that_are_no_grid(state: State, tokens: int, words: str | None) -> None:
    state["pos_embed"] = torch.zeros(1, tokens, 192)
    if words is None:  # negative control
        convstem.convert(state, num_heads=3)
        return
    with pytest.raises(ConversionError, match=words):
        convstem.convert(state, num_heads=3)


def test_an_mlp_with_a_gate_needs_the_architecture(state: State) -> None:
    for name in ("weight", "bias"):
        key = f"blocks.0.mlp.fc1.{name}"
        state[key] = torch.cat([state[key], state[key]])
    with pytest.raises(ArgumentError, match=r"the architecture, with a gated MLP \(SwiGLU\)"):
        convstem.convert(state, num_heads=3)


def test_parts_of_other_sizes_are_not_joined() -> None:
    square, wide = torch.zeros(4, 4), torch.zeros(5, 4)
    assert JOIN_QKV.apply([square, square, square])[0].shape == (12, 4)  # negative control
    with pytest.raises(ConversionError, match="the parts differ in shape"):
        JOIN_QKV.apply([wide, square, square])


def test_moco_v3s_table_of_positions_tells_the_heads() -> None:
    theirs = vits.MocoViT()
    theirs.fix_positions()
    converted = convstem.convert(theirs.state_dict())
    assert (converted.pretrained_cfg["mean"], converted.pretrained_cfg["std"]) == (IMAGENET_MEAN, IMAGENET_STD)
    state = converted.state_dict
    assert convstem.convert(state, stem_strides=[2] * 4).architecture == "vit_conv_small"
    with pytest.raises(ArgumentError, match="the number of attention heads cannot be read"):  # negative control
        convstem.convert({**state, "pos_embed": state["pos_embed"] + 0.1}, stem_strides=[2] * 4)


def test_more_than_one_type_of_number_is_noted(state: State) -> None:
    assert not any("mixed dtypes" in note for note in convstem.convert(state, num_heads=3).report.notes)
    state["norm.weight"] = state["norm.weight"].half()
    notes = convstem.convert(state, num_heads=3).report.notes
    assert f"mixed dtypes, kept as they are: 1 float16, {len(state) - 1} float32" in notes


def test_transformers_vits_have_their_own_epsilon() -> None:
    theirs = transformers.ViTModel(
        transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96)
    )
    converted = convstem.convert(theirs.state_dict(), num_heads=3)
    assert (converted.source, converted.norm_eps) == ("transformers_vit", 1e-12)
    assert convstem.convert(theirs.state_dict(), num_heads=3, norm_eps=1e-5).norm_eps == 1e-5


def test_torchvisions_older_keys_mean_the_same(state: State) -> None:
    theirs = convstem.convert(state, num_heads=3, target="torchvision").state_dict
    older = {key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): theirs[key] for key in theirs}
    assert older.keys() != theirs.keys()
    again = convstem.convert(older, num_heads=3)
    assert again.source == "torchvision" and again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_a_grid_that_is_no_square_needs_its_image_size(state: State) -> None:
    state["pos_embed"] = torch.zeros(1, 1 + 2 * 4, 192)
    assert convstem.convert(state, num_heads=3, img_size=(32, 64)).model_args["img_size"] == (32, 64)
    state["pos_embed"] = torch.zeros(1, 1 + 2 * 3, 192)
    with pytest.raises(ConversionError, match="6 positions are no square grid|7 positions are no square grid"):
        convstem.convert(state, num_heads=3)


def test_names_that_a_checkpoint_cannot_be() -> None:
    stemmed = timm.create_model("vit_nano4_convstem", device="meta").state_dict()
    with pytest.raises(ValueError, match="vit_small_patch16_dinov3_convstem has timm's trunk vit_small_patch16_dinov3"):
        convstem.convert(stemmed, architecture="vit_small_patch16_dinov3_convstem")
    plain = timm.create_model("vit_tiny_patch16_224", device="meta").state_dict()
    with pytest.raises(ValueError, match=r"timm has no architecture 'vit_x'; `timm.list_models\('vit_\*'\)` lists"):
        convstem.convert(plain, architecture="vit_x", num_heads=3)


def test_a_key_that_no_layout_has_is_named_and_nothing_else() -> None:
    state = timm.create_model("vit_tiny_patch16_224", device="meta").state_dict()
    with pytest.raises(ValueError, match="1 of 153 keys are not in the layout 'timm': blocks.0.odd$"):
        convstem.convert({**state, "blocks.0.odd": torch.ones(1)}, "timm", num_heads=3)


@pytest.mark.parametrize(("value", "size"), [(0, False), (1, True), (2**20, False), (True, False), (1.0, False)])
def test_what_can_be_a_size(value: object, size: bool) -> None:
    assert _is_size(value) is size
