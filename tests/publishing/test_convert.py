"""``convstem convert``: every layout becomes a folder that verifies and loads with the same outputs."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

import convstem
from convstem.cli.main import main
from convstem.errors import InvalidFileError
from convstem.files.checkpoint import read_checkpoint
from convstem.publishing.convert import convert_to_folder
from convstem.publishing.folder import save
from tests.support import reference_vits as vits
from tests.support.assertions import randomise, relative_error
from tests.support.everyday import mostly_in_ci
from tests.support.jax_checkpoints import npz, stacked
from tests.support.layout_cases import CASES, RESTATED, Case

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def run(*arguments: Any, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def options(case: Case) -> list[str]:
    text = {"num_heads": lambda v: str(v), "stem_strides": lambda v: ",".join(map(str, v))}
    given = [f"--{name.replace('_', '-')}={text[name](value)}" for name, value in case.facts.items()]
    return [*given, *(["--use-ema"] if case.use_ema else [])]


def load(folder: Path) -> nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


FIRST = [next(case for case in CASES if case.layout == layout) for layout in {case.layout for case in CASES}]
FIRST += [next(case for case in CASES if case.use_ema)]


@pytest.mark.parametrize("case", mostly_in_ci(CASES, FIRST), ids=lambda case: case.name)
def test_a_checkpoint_becomes_a_folder_that_loads(case: Case, tmp_path: Path) -> None:
    reference = case.build().float()
    torch.save(case.hold(reference.state_dict()), tmp_path / "held.pth")
    output = run(tmp_path / "held.pth", "--out", tmp_path / "out", "--license", "mit", *options(case))
    assert case.layout in output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    model, pixels = load(tmp_path / "out"), IMAGES
    if case.name == "robustbench S":
        cfg = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
        mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
        pixels = (IMAGES - mean) / std
    if case.layout == "transformers_vit":  # timm's name has no epsilon; the command says so
        assert "have the epsilon 1e-12" in output
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-12
    expected = case.reference(reference, IMAGES)
    with torch.no_grad():
        assert relative_error(model(pixels), expected) < 1e-5
        randomise(model, seed=5)
        assert relative_error(model(pixels), expected) > 0.01  # negative control
    if case.layout not in ("transformers_vit",) and hasattr(model.patch_embed, "stem_spec"):
        report = convstem.verify(tmp_path / "out")
        assert report.ok, report


def test_the_output_says_what_was_done(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "moco_v3 pre-training")
    torch.save(case.hold(case.build().state_dict()), tmp_path / "moco.pth.tar")
    text = run(tmp_path / "moco.pth.tar", "--out", tmp_path / "out")
    for piece in ("moco_v3", "state_dict module. base_encoder.", "raw", "vit_conv_small(", "the projector is only for",
                  "the averaged twin of the encoder"):  # fmt: skip
        assert piece in text, piece
    told = json.loads(run(tmp_path / "moco.pth.tar", "--out", tmp_path / "json", "--json"))
    assert told["architecture"] == "vit_conv_small"
    assert told["report"]["dropped"]["head.0.weight"] == "the projector is only for pre-training"
    run(tmp_path / "moco.pth.tar", "--out", tmp_path / "out", status=1)  # never over an existing model


FULL_SIZE = {
    "vit_conv_small": lambda: vits.MocoViT(384, 11, 1000, 196),
    "vit_conv_base": lambda: vits.MocoViT(768, 11, 1000, 196),
    "vit_s16_cvst": lambda: vits.robust(48, 384, 12, 6, False, 1000, 196),
    "vit_m16_cvst": lambda: vits.robust(48, 512, 12, 8, True, 1000, 196),
    "vit_b16_cvst": lambda: vits.robust(48, 768, 12, 12, False, 1000, 196),
    "vitc_1gf": lambda: vits.PyclsViT((24, 48, 96, 192), (2,) * 4, 192, 11, 3, True, 3, 1000, 196),
    "vitc_4gf": lambda: vits.PyclsViT((48, 96, 192, 384), (2,) * 4, 384, 11, 6, True, 3, 1000, 196),
    "vitc_18gf": lambda: vits.PyclsViT(
        (64, 128, 128, 256, 256, 512), (2, 2, 1, 2, 1, 2), 768, 11, 12, True, 4, 1000, 196
    ),
}


@pytest.mark.parametrize("name", mostly_in_ci([*FULL_SIZE], ["vitc_1gf"]))
def test_published_sizes_are_named_without_being_told(name: str) -> None:
    with torch.device("meta"):
        model: Any = FULL_SIZE[name]()
    state: dict[str, torch.Tensor] = {**model.state_dict()}
    if name.startswith("vit_conv"):
        table = vits.MocoViT(model.pos_embed.shape[2], 1, 5, 196)
        table.fix_positions()
        state["pos_embed"] = table.pos_embed.detach()
    converted = convstem.convert(state)
    assert converted.architecture == name
    assert converted.model_args == ({"norm_eps": 1e-5} if name.startswith("vitc") else {})
    own = timm.create_model(name, device="meta", **converted.model_args).state_dict()
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in own.items()}


def plain(folder: Path) -> Path:
    """A transformers ViT in the format of its repository."""
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=4
    )
    randomise(transformers.ViTForImageClassification(config)).save_pretrained(folder)
    preprocessing = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.mark.full
def test_a_plain_vit_is_recognised_and_transplanted_on_request(tmp_path: Path) -> None:
    source = plain(tmp_path / "source")
    text = run(source, "--out", tmp_path / "plain", "--check")
    assert "vit_tiny_patch16_224(num_classes=4)" in text
    assert "a plain (patchify) timm ViT; --transplant gives it a conv stem" in text
    assert "equal to transformers's outputs within" in text
    text = run(source, "--out", tmp_path / "stem", "--transplant", "--check", "--license", "apache-2.0")
    assert "vit_ti16_convstem" in text
    config = json.loads((tmp_path / "stem" / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    assert config["model_args"]["norm_eps"] == 1e-12
    assert load(tmp_path / "stem").norm.eps == 1e-12
    assert convstem.verify(tmp_path / "stem").ok
    reference = transformers.ViTForImageClassification.from_pretrained(source).eval()
    low = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1) / -torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    x = low + torch.rand(2, 3, 224, 224) / torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    with torch.no_grad():
        assert relative_error(load(tmp_path / "stem")(x), reference(x).logits) < 1e-4
    twin = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "stem").eval()
    with torch.no_grad():
        assert relative_error(twin(x).logits, reference(x).logits) < 1e-4


def test_the_check_finds_a_difference(tmp_path: Path) -> None:
    source = plain(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert "differs from transformers's by" in run(source, "--out", tmp_path / "out", "--check", status=1)
    assert not (tmp_path / "out").exists()


def test_to_another_layout(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "torchvision")
    reference = case.build().float()
    torch.save(case.hold(reference.state_dict()), tmp_path / "held.pth")
    run(tmp_path / "held.pth", "--out", tmp_path / "out", "--to", "torchvision", *options(case))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == reference.state_dict().keys()


@pytest.mark.parametrize(
    ("big_vision", "stack", "prefix"),
    [(False, False, ""), (False, False, "opt/target/"), (True, False, "params/"), (True, True, "params/")],
)
def test_jax_checkpoints_as_timm_itself_reads_them(big_vision: bool, stack: bool, prefix: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = dict(img_size=32, depth=2, embed_dim=24, num_heads=3, num_classes=5)
    model = randomise(timm.create_model("vit_base_patch16_224", **sizes)).eval()
    arrays = npz(model.state_dict(), 3, big_vision)
    arrays = {prefix + key: value for key, value in (stacked(arrays) if stack else arrays).items()}
    numpy.savez(tmp_path / "checkpoint.npz", **arrays)
    timms = timm.create_model("vit_base_patch16_224", **sizes).eval()
    with torch.no_grad():
        expected = model(IMAGES)
        assert relative_error(timms(IMAGES), expected) > 0.01  # negative control
    timms.load_pretrained(str(tmp_path / "checkpoint.npz"))
    run(tmp_path / "checkpoint.npz", "--out", tmp_path / "out")
    ours = load(tmp_path / "out")
    assert ours.blocks[0].attn.num_heads == 3  # from the shapes
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), timms.state_dict().values(), strict=True))
    with torch.no_grad():
        assert relative_error(ours(IMAGES), expected) < 1e-6


def test_each_step_is_said_to_whoever_shows_progress(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(RESTATED[0].build().state_dict(), tmp_path / "x.pth")
    with caplog.at_level("INFO", logger="convstem.progress"):
        convert_to_folder(tmp_path / "x.pth", tmp_path / "out", **RESTATED[0].facts)
    steps = [record.getMessage() for record in caplog.records if record.name == "convstem.progress"]
    assert steps == [
        "reading x.pth",
        "converting x.pth",
        f"comparing and writing {tmp_path / 'out'}",
        "reading back what was written, and comparing",
    ]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil-was-run",)


def truncated(path: Path) -> None:
    torch.save(RESTATED[0].build().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half(path: Path) -> None:
    save_file(RESTATED[0].build().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def tied(path: Path) -> None:
    state = RESTATED[0].build().state_dict()
    state["blocks.1.norm1.weight"] = state["blocks.0.norm1.weight"]
    torch.save(state, path)


def hidden_layer(path: Path) -> None:
    model = vits.ClassyViT()
    state = model.classy_state()
    head = state["model"]["heads"]["trunk_output"]["default_head"]
    head |= {"layers.pre_logits.weight": torch.ones(24, 24), "layers.pre_logits.bias": torch.ones(24)}
    torch.save({"classy_state_dict": {"base_model": state}}, path)


BAD_FILES = {
    "truncated": (truncated, "bad.pth", "bad.pth .* is truncated, damaged or not a checkpoint"),
    "truncated safetensors": (half, "bad.safetensors", "is not a valid safetensors file"),
    "truncated npz": (lambda path: path.write_bytes(b"PK\3\4 half"), "bad.npz", "truncated, damaged or not an .npz"),
    "code": (lambda path: torch.save({"state_dict": {"x": Evil()}}, path), "bad.pth", "without running code.*system"),
    "a list": (lambda path: torch.save([torch.ones(1)], path), "bad.pth", "holds a list, not a dictionary"),
    "tied": (tied, "bad.pth", "blocks.0.norm1.weight, blocks.1.norm1.weight. No ViT ties its weights"),
    "pre_logits": (hidden_layer, "bad.pth", "a ClassyVision checkpoint, but its head has a hidden layer .pre_logits"),
    "optimizer only": (lambda path: torch.save({"optimizer": {"a": torch.ones(1)}}, path), "bad.pth",
                       "no state dict in this checkpoint: it holds optimizer"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, file, message = BAD_FILES[name]
    make(tmp_path / file)
    output = run(tmp_path / file, "--out", tmp_path / "out", status=1)
    with pytest.raises(convstem.ConvStemError, match=message):
        raise convstem.ConvStemError(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == [file]


BAD_NEIGHBOURS = {
    "no JSON": ("config.json", b"{half", "config.json is not JSON"),
    "no text": ("config.json", b"\xff\xfe\0", "config.json is not UTF-8 text: byte 2 cannot be read"),
    "a list": ("config.json", b"[1]", "config.json .* expected a JSON object, got a list"),
    "one mean": ("preprocessor_config.json", b'{"image_mean": 0.5}', "image_mean must be a list of numbers; got 0.5"),
    "a word": ("preprocessor_config.json", b'{"image_std": "abc"}', "image_std must be a list of numbers; got abc"),
}


@pytest.mark.parametrize("name", BAD_NEIGHBOURS)
def test_a_bad_config_beside_a_checkpoint_is_one_sentence(name: str, tmp_path: Path) -> None:
    neighbour, content, message = BAD_NEIGHBOURS[name]
    torch.save(RESTATED[0].build().state_dict(), tmp_path / "a.pth")
    (tmp_path / neighbour).write_bytes(content)
    with pytest.raises(InvalidFileError, match=message):
        convert_to_folder(tmp_path / "a.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.pth"):
        read_checkpoint(tmp_path / "nothing.pth")


FOREIGN = {
    "swin_tiny_patch4_window7_224": "a Swin Transformer's checkpoint",
    "pvt_v2_b0": "a PVT's checkpoint",
    "mixer_s16_224": "an MLP-Mixer's checkpoint",
    "resnet18": "a ResNet's checkpoint",
    "convnext_atto": "a ConvNeXt or another staged network",
    "beit_base_patch16_224": "a BEiT's checkpoint",
    "eva02_base_patch16_clip_224": "an EVA or DINOv3 checkpoint",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_vit_is_named(name: str) -> None:
    state = timm.create_model(name, device="meta").state_dict()
    for source in (None, "timm"):
        with pytest.raises(ValueError, match=FOREIGN[name]):
            convstem.convert(state, source)


def test_other_strangers_are_named() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", device="meta").state_dict()
    stem = {f"patch_embed.proj.{i}.weight": torch.zeros(8, 3, 3, 3) for i in (0, 3)}
    ctranspath = {**{k: v for k, v in swin.items() if "patch_embed" not in k}, **stem}
    cct = {"tokenizer.conv_layers.0.0.weight": torch.zeros(8, 3, 3, 3), "classifier.fc.weight": torch.zeros(5, 8)}
    for state, message in (
        (ctranspath, "a CTransPath checkpoint: .*a Swin"),
        (cct, r"Compact Transformer.*pools by max"),
    ):
        with pytest.raises(ValueError, match=message):
            convstem.convert(state)


def test_what_torchvision_cannot_express_is_refused() -> None:
    def state(name: str, **arguments: Any) -> Any:
        return timm.create_model(name, device="meta", **arguments).state_dict()

    for tensors, message in (
        (state("vit_s16_cvst"), "its stem has another norm"),
        (state("vit_nano4_convstem", init_values=1e-5), "it has LayerScale"),
        (state("vit_nano4_convstem", qk_norm=True), "it normalises queries and keys"),
        (state("vit_nano4_convstem", reg_tokens=4), "it has register tokens"),
        (state("vit_nano4_convstem", class_token=False, global_pool="avg"), "it has no class token"),
    ):
        with pytest.raises(ValueError, match=f"torchvision cannot express this model: {message}"):
            convstem.convert(tensors, "timm", "torchvision")


def test_mixed_layouts_are_refused_and_mixed_dtypes_said() -> None:
    state = dict(RESTATED[0].build().state_dict())
    mixed = {**state, "conv_proj.conv_last.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"two layouts are mixed.*a MoCo v3 checkpoint.*a torchvision checkpoint"):
        convstem.convert(mixed)
    state["head.weight"] = state["head.weight"].half()
    assert "mixed dtypes, kept as they are: 1 float16" in convstem.convert(state).report.summary()


def test_only_you_can_know_the_heads() -> None:
    case = next(case for case in CASES if case.name == "torchvision")
    state = case.build().state_dict()
    with pytest.raises(ValueError, match=r"attention heads cannot be read .* pass num_heads= or architecture="):
        convstem.convert(state)
    with pytest.raises(ValueError, match=r"strides of the 4 stem layers cannot be read"):
        convstem.convert(state, num_heads=3)
    assert len(convstem.convert(state, "torchvision")) == len(state)  # tensors alone need neither
    with pytest.raises(ValueError, match=r"this checkpoint is not a vitc_4gf: it has 2 blocks of width 24"):
        convstem.convert(state, architecture="vitc_4gf")
    with pytest.raises(ValueError, match=r"convert also takes .*num_heads.*; got heads"):
        convstem.convert(state, heads=3)


@pytest.mark.parametrize("way", ["load_state_dict", "pretrained", "checkpoint_path", "load"])
def test_every_way_of_loading_names_a_foreign_checkpoint(way: str, tmp_path: Path) -> None:
    state = vits.MocoViT().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    config = {"architecture": "vit_nano4_convstem", "num_classes": 10, "pretrained_cfg": {"num_classes": 10}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ways = {
        "load_state_dict": lambda: timm.create_model("vit_nano4_convstem").load_state_dict(state),
        "pretrained": lambda: timm.create_model(
            "vit_nano4_convstem", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors")}
        ),
        "checkpoint_path": lambda: timm.create_model(
            "vit_nano4_convstem", checkpoint_path=str(tmp_path / "model.safetensors")
        ),
        "load": lambda: convstem.load(tmp_path),
    }
    with pytest.raises(RuntimeError, match=r"this is a MoCo v3 checkpoint.*`convstem convert FILE --out FOLDER`"):
        ways[way]()


NO_CHECKPOINTS = {
    "passwd": b"root:x:0:0:root:/root:/bin/bash\n",
    "README.md": b"# A page\n\nWith words.\n",
    "chapter": b"convstem is a plugin\nfor two hosts\n.",
    "zip": b"PK\x03\x04 nothing",
    "empty": b"",
    "bytes": bytes(range(256)),
    "pickle": b"\x80\x02q\x01.",
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_one_sentence_without_torchs_advice(name: str, tmp_path: Path) -> None:
    for suffix in ("", ".pth", ".bin"):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(NO_CHECKPOINTS[name])
        output = run(path, "--out", tmp_path / "out", status=1)
        assert "is truncated, damaged or not a checkpoint" in output, output
        assert "weights_only" not in output
        assert len(output.splitlines()) == 1


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


@pytest.mark.parametrize(("registers", "name"), [(0, "vit_small_patch14_dinov2"), (4, "vit_small_patch14_reg4_dinov2")])
def test_a_file_of_dinov2_is_named_without_being_told(registers: int, name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = dict(timm.create_model(name, img_size=224).state_dict())
    converted = convstem.convert({**state, "mask_token": torch.zeros(1, 384)})
    assert (converted.architecture, converted.model_args) == (name, {"img_size": 224, "num_classes": 0}) or (
        converted.architecture == name and converted.model_args == {"img_size": 224}
    )
    assert converted.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)


SIZES: dict[str, Any] = {"depth": 1, "embed_dim": 24, "num_heads": 3, "num_classes": 3}


def test_the_config_of_a_folder_that_convstem_wrote_is_kept(tmp_path: Path) -> None:
    cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.7, "interpolation": "bilinear"}
    model = timm.create_model(
        "vit_ti16_convstem", img_size=64, norm_eps=1e-5, pretrained_cfg_overlay=cfg, act_layer="relu", **SIZES
    )
    model.pretrained_cfg["label_names"] = ["a", "b", "c"]
    (tmp_path / "one").mkdir()
    save(randomise(model), tmp_path / "one")
    run(tmp_path / "one", "--out", tmp_path / "two", "--license", "mit")
    one, two = config_of(tmp_path / "one"), config_of(tmp_path / "two")
    for field in cfg:
        assert two["pretrained_cfg"].get(field) == one["pretrained_cfg"].get(field), field
    assert two["label_names"] == ["a", "b", "c"]
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        assert relative_error(load(tmp_path / "two")(x), load(tmp_path / "one")(x)) < 1e-6


@pytest.mark.parametrize("transplanted", [[], ["--transplant"]])
def test_the_class_names_of_transformers_stay(transplanted: list[str], tmp_path: Path) -> None:
    names = {0: "cat", 1: "dog", 2: "horse"}
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96,
                                    image_size=32, id2label=names)  # fmt: skip
    randomise(transformers.ViTForImageClassification(config)).save_pretrained(tmp_path / "source")
    run(tmp_path / "source", "--out", tmp_path / "out", *transplanted)
    assert config_of(tmp_path / "out")["label_names"] == [*names.values()]
    back = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert back.config.id2label == names
    if transplanted:
        assert "cat, dog, horse." in (tmp_path / "out" / "README.md").read_text()


TOLD = ("--num-heads", "3", "--stem-strides", "2,2,2,2")


def test_class_names_of_a_file(tmp_path: Path) -> None:
    model = timm.create_model("vit_ti16_convstem", img_size=32, **SIZES)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    for name, text in (("lines.txt", "ash\noak\n elm \n\n"), ("list.json", '["ash", "oak", "elm"]')):
        (tmp_path / name).write_text(text)
        run(tmp_path / "a.pth", *TOLD, "--labels", tmp_path / name, "--out", tmp_path / f"out-{name}")
        assert config_of(tmp_path / f"out-{name}")["label_names"] == ["ash", "oak", "elm"]
        assert "## Classes\n\nash, oak, elm." in (tmp_path / f"out-{name}" / "README.md").read_text()
    (tmp_path / "two.txt").write_text("ash\noak\n")
    refused = run(tmp_path / "a.pth", *TOLD, "--labels", tmp_path / "two.txt", "--out", tmp_path / "x", status=1)
    assert "2 labels (--labels) were given for 3 classes" in refused
    (tmp_path / "bad.json").write_text("[1, 2, 3]")
    assert "expected one per line" in run(
        tmp_path / "a.pth", "--labels", tmp_path / "bad.json", "--out", tmp_path / "x", status=2
    )


@pytest.mark.parametrize("size", mostly_in_ci([96, 518, 336], {96}))
def test_transplants_at_other_sizes_than_the_names_are_checked_afterwards(size: int, tmp_path: Path) -> None:
    patch = 14 if size == 518 else 16
    kind = transformers.Dinov2Config if patch == 14 else transformers.ViTConfig
    config = kind(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96, mlp_ratio=4,
                  image_size=size, patch_size=patch)  # fmt: skip
    build = transformers.Dinov2Model if patch == 14 else transformers.ViTForImageClassification
    randomise(build(config)).save_pretrained(tmp_path / "source")
    text = run(tmp_path / "source", "--out", tmp_path / "out", "--transplant", "--check")
    assert re.search(r"equal to transformers's outputs within [\d.e-]+, after the transplant", text), text
    assert "within 0.0e+00" not in text
    assert load(tmp_path / "out").patch_embed.img_size == (size // patch * 16,) * 2


def test_the_check_looks_at_the_transplant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a transplant that differs is found, and nothing is written."""
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96,
                                    image_size=32)  # fmt: skip
    randomise(transformers.ViTForImageClassification(config)).save_pretrained(tmp_path / "source")
    monkeypatch.setattr(
        "convstem.publishing.derived.transplant", lambda model, **_: randomise(convstem.transplant(model))
    )
    monkeypatch.setattr("convstem.publishing.derived.measure_error", lambda *_: 0.0)
    text = run(tmp_path / "source", "--out", tmp_path / "out", "--transplant", "--check", status=1)
    assert "differs from transformers's by" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_nano4_convstem", {"patch_size": 8, "img_size": 64}),  # no registry row has its stem
        ("vit_ti16_convstem", {"depth": 1, "patch_size": 8, "img_size": 64}),
        ("vit_ti16_convstem", {"depth": 1, "stride": 8, "img_size": 64}),  # shapes do not show the stride
        ("vit_ti16_convstem", {"depth": 1, "stride": 32, "img_size": 64}),
        ("vit_nano4_convstem", {"stride": 2, "img_size": 32}),
    ],
)
def test_a_run_at_another_patch_size_or_stride(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = randomise(timm.create_model(name, num_classes=3, **settings)).eval()
    assert model.patch_embed.patch_size != timm.create_model(name).patch_embed.patch_size  # negative control
    args = argparse.Namespace(model=name, model_kwargs=settings)
    torch.save({"state_dict": model.state_dict(), "args": args, "arch": name}, tmp_path / "last.pth.tar")
    run(tmp_path / "last.pth.tar", "--out", tmp_path / "out")
    images = torch.rand(2, 3, settings["img_size"], settings["img_size"])
    assert torch.equal(load(tmp_path / "out")(images), model(images))


@pytest.mark.parametrize("stride", [8, 32])
def test_a_run_that_started_from_a_folder_keeps_its_stride_and_preprocessing(stride: int, tmp_path: Path) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3, img_size=64)
    plain.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.77, "license": "mit"}
    twin = convstem.transplant(plain, stride=stride)
    timm.models.save_for_hf(twin, tmp_path / "start", safe_serialization=True)
    place = f"local-dir:{tmp_path / 'start'}"
    model: Any = randomise(timm.create_model(place)).eval()
    args = argparse.Namespace(model=place, model_kwargs={}, mean=None, std=(0.7, 0.7, 0.7))
    torch.save({"state_dict": model.state_dict(), "args": args, "arch": place}, tmp_path / "last.pth.tar")
    assert "assumed" not in run(tmp_path / "last.pth.tar", "--out", tmp_path / "out")
    again: Any = load(tmp_path / "out")
    images = torch.rand(2, 3, *model.patch_embed.img_size)
    assert torch.equal(again(images), model(images))
    assert again.patch_embed.grid_size == model.patch_embed.grid_size
    assert [again.pretrained_cfg[name] for name in ("mean", "std")] == [[0.1, 0.2, 0.3], [0.7, 0.7, 0.7]]
    assert (again.pretrained_cfg["crop_pct"], again.pretrained_cfg["license"]) == (0.77, "other")
    run(tmp_path / "out", "--out", tmp_path / "copy")
    assert load(tmp_path / "copy").patch_embed.grid_size == model.patch_embed.grid_size
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    run(tmp_path / "bare.pth", "--out", tmp_path / "bare", "--stride", stride, "--num-heads", 3)
    assert torch.equal(load(tmp_path / "bare")(images), model(images))
    shutil.rmtree(tmp_path / "start")
    said = run(tmp_path / "last.pth.tar", "--out", tmp_path / "lost", "--num-heads", 3)
    assert "it was trained from local-dir:" in said and "set them with --stride, --mean and --std" in said
    assert str(tmp_path) not in (tmp_path / "lost" / "README.md").read_text()  # a card is for everybody


def test_a_bare_state_dict_of_denser_tokens_is_also_one_of_more_pixels(tmp_path: Path) -> None:
    for name, settings in (("denser", {"stride": 8}), ("usual", {})):
        model = timm.create_model("vit_ti16_convstem", num_classes=3, **settings)
        torch.save(model.state_dict(), tmp_path / f"{name}.pth")
    said = "its positions fit 448 pixels at stride 16, as written, or 224 pixels at stride 8: for these give --stride 8"
    assert said in run(tmp_path / "denser.pth", "--out", tmp_path / "larger")
    assert said in run(tmp_path / "denser.pth", "--out", tmp_path / "heads", "--num-heads", 3)
    torch.save({"model": torch.load(tmp_path / "denser.pth")}, tmp_path / "wrapped.pth")
    assert said in run(tmp_path / "wrapped.pth", "--out", tmp_path / "wrapped")
    assert said not in run(tmp_path / "denser.pth", "--out", tmp_path / "sure", "--stride", 16)
    assert said not in run(tmp_path / "denser.pth", "--out", tmp_path / "denser", "--stride", 8)
    assert load(tmp_path / "larger").patch_embed.img_size == (448, 448)
    assert load(tmp_path / "denser").patch_embed.img_size == (224, 224)
    assert "its positions fit" not in run(tmp_path / "usual.pth", "--out", tmp_path / "usual")
