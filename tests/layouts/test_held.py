"""Checkpoints as users have them: wrapped, renamed, in shards. Files of other formats are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import convstem
from convstem.errors import InvalidFileError
from convstem.files.checkpoint import read_checkpoint
from convstem.publishing.convert import convert_to_folder
from tests.support.assertions import randomise, relative_error
from tests.support.layout_cases import add_prefix

State = dict[str, Any]


@pytest.fixture(scope="module")
def plain() -> Any:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=5)
    return randomise(model).eval()


def text(state: State) -> State:
    """Return the text tower of a CLIP model, as open_clip and OpenAI save it."""
    names = ("token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection", "logit_scale")
    block = {"transformer.resblocks.0.ln_1.weight": torch.ones(2)}
    return {**state, **block, **{name: torch.ones(2) for name in names}}


HELD = {
    "DeepSpeed": lambda s: {"module": s, "global_steps": 3, "ds_config": {"x": 1}},
    "TimmWrapper": lambda s: add_prefix("timm_model.", s),
    "an encoder": lambda s: add_prefix("encoder.", s),
    "an encoder with a decoder": lambda s: {**add_prefix("encoder.", s), "decoder.blocks.0.weight": torch.ones(1)},
    "depth estimation": lambda s: {**add_prefix("pretrained.", s), "depth_head.x.weight": torch.ones(1)},
    "a renamed tower": lambda s: add_prefix("image_encoder.", s),
    "a tower in a model": lambda s: add_prefix("module.clip_model.", s),
    "timm's tower in open_clip": lambda s: {
        **text(add_prefix("visual.trunk.", s)), "visual.head.proj.weight": torch.ones(2)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("stem", [False, True])
def test_wrappings(name: str, stem: bool, plain: Any) -> None:
    model = timm.create_model("vit_nano4_convstem", depth=2, num_classes=5) if stem else plain
    state = model.state_dict()
    converted = convstem.convert(HELD[name](state), num_heads=3)
    assert set(converted) == set(state)
    assert all(torch.equal(converted[key], state[key]) for key in state)


def test_a_decoder_is_not_swallowed_with_anything_else(plain: Any) -> None:
    state = {**add_prefix("encoder.", plain.state_dict()), "other.weight": torch.ones(1)}
    with pytest.raises(convstem.ConvStemError, match="not a ViT checkpoint that convstem knows"):
        convstem.convert(state, num_heads=3)


SIZES = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "heads": 4, "mlp_ratio": 4.0, "output_dim": 7}


def tower(act: Any) -> Any:
    transformer = pytest.importorskip("open_clip.transformer", reason="open-clip-torch is not installed")
    return randomise(transformer.VisionTransformer(**SIZES, act_layer=act)).eval()


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("act", "facts"), [(nn.GELU, {}), (QuickGELU, {"act_layer": "quick_gelu"})])
@pytest.mark.parametrize("held", ["bare", "whole", "epoch", "custom text", "renamed"])
def test_open_clips_own_tower(act: Any, facts: State, held: str) -> None:
    model = tower(act)
    inner = add_prefix("visual.", model.state_dict())
    content = {
        "bare": lambda: inner,
        "whole": lambda: text(inner),
        "epoch": lambda: {"epoch": 3, "name": "run", "state_dict": add_prefix("module.", text(inner))},
        "custom text": lambda: {**inner, "text.transformer.x": torch.ones(1), "logit_bias": torch.ones(1)},
        "renamed": lambda: add_prefix("clip.", text(inner)),
    }[held]()
    converted = convstem.convert(content, num_heads=4, **facts)
    assert converted.source == "open_clip"
    assert bool([n for n in converted.report.notes if "assumed to be GELU, as in LAION's CLIP" in n]) == (not facts)
    ours = timm.create_model(converted.architecture, **converted.model_args)
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = converted.norm_eps
    ours.load_state_dict(converted)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative_error(ours.eval()(x), model(x)) < 1e-5
    back = convstem.convert(converted.state_dict, "timm", "open_clip")
    assert set(back) == set(model.state_dict())
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("facts", "name"), [({}, "clip"), ({"act_layer": "quick_gelu"}, "clip_quickgelu")])
def test_open_clips_sizes_have_timms_names(facts: State, name: str) -> None:
    model = timm.create_model("vit_base_patch16_clip_224", num_classes=0, device="meta")
    tower = convstem.convert(model.state_dict(), "timm", "open_clip").state_dict
    converted = convstem.convert(tower, "open_clip", **facts)
    assert (converted.architecture, converted.model_args) == (f"vit_base_patch16_{name}_224", {"num_classes": 0})


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_with_an_index(kind: str, plain: Any, tmp_path: Path) -> None:
    state = plain.state_dict()
    keys = list(state)
    halves = {1: keys[: len(keys) // 2], 2: keys[len(keys) // 2 :]}
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    names = {half: f"{stem}-0000{half}-of-00002.{kind}" for half in halves}
    for half, name in names.items():
        part = {key: state[key] for key in halves[half]}
        save_file(part, tmp_path / name) if kind == "safetensors" else torch.save(part, tmp_path / name)
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": {key: names[half] for half in halves for key in halves[half]}}))
    found = read_checkpoint(index)
    assert all(torch.equal(found[key], state[key]) for key in state)
    result = convert_to_folder(tmp_path, tmp_path / "out", num_heads=3)
    assert result.patchify
    for content, message in (
        ({"weight_map": {"x": "../x.safetensors"}}, "may only name files beside it; got ../x.safetensors"),
        ({"weight_map": {"x": names[1]}}, "names tensors that its files do not have: x"),
        ({"weight_map": 3}, "is not an index of weights"),
        ([], "is not an index of weights"),
        ({"weight_map": {"x": "gone.safetensors"}}, "there is no file"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(convstem.ConvStemError, match=message):
            read_checkpoint(index)


FORMATS = {
    "m.onnx": (b"\x08\x07", "m.onnx is an ONNX graph, not a checkpoint of torch or JAX: onnx reads it"),
    "m.gguf": (b"GGUF\x03", "a GGUF file of llama.cpp"),
    "m.bin": (b"GGUF\x03", "a GGUF file of llama.cpp"),
    "m.h5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them"),
    "m.pth": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "m.tflite": (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
    "m.msgpack": (b"\x81", "a Flax msgpack file: |flax.serialization.msgpack_restore"),
    "m.keras": (b"PK\x03\x04", "a Keras 3 model"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_are_named(name: str, tmp_path: Path) -> None:
    content, message = FORMATS[name]
    (tmp_path / name).write_bytes(content + bytes(64))
    with pytest.raises(InvalidFileError, match=message):
        convert_to_folder(tmp_path / name, tmp_path / "out")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "m.pt")
    with pytest.raises(InvalidFileError, match="m.pt is a TorchScript archive, which holds code.*torch.jit.load"):
        convert_to_folder(tmp_path / "m.pt", tmp_path / "out")
