# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""A model's life: made, pushed, loaded, trained, pushed again; and its cards at each step."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import convstem
from convstem.cli.main import main
from convstem.hub.config import SCRATCH, Step, record, steps
from convstem.publishing.card import card_of, located
from convstem.publishing.push import stage
from convstem.publishing.trained import history
from tests.support.assertions import randomise
from tests.support.hub_server import HubServer, run_python
from tests.support.hub_server.fixtures import cache, client, hub, server  # noqa: F401
from tests.support.script_runs import CLASSES, Scripts, largest_gap, train

NANO = "vit_nano4_convstem"
TI = "vit_tiny_patch16_224"


def checkpoint(path: Path, arch: str, model: Any, **args: Any) -> Path:
    """Write a checkpoint in the format of timm's train.py."""
    args = {"model": arch, "pretrained": False, "model_kwargs": {}, **args}
    torch.save({"arch": arch, "state_dict": model.state_dict(), "args": argparse.Namespace(**args)}, path)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a small model of ours whose stem differs from the architecture's."""
    folder = tmp_path / "saved"
    folder.mkdir()
    stage(randomise(timm.create_model(NANO, num_classes=3, stem_channels=[32, 64])), folder)
    return folder


def test_a_checkpoint_trained_from_a_folder_is_resolved(saved: Path, tmp_path: Path) -> None:
    model = timm.create_model(f"local-dir:{saved}", pretrained=True)
    path = checkpoint(tmp_path / "last.pth.tar", f"local-dir:{saved}", model, pretrained=True)
    out = tmp_path / "out"
    out.mkdir()
    stage(path, out)
    again = convstem.load(out)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(again.patch_embed.backbone[0].conv.weight, model.patch_embed.backbone[0].conv.weight)
    assert [step.what for step in steps(again.pretrained_cfg)] == ["fine-tuned from"]


def test_what_cannot_be_resolved_is_named_by_arch(saved: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "last.pth.tar", "local-dir:gone", timm.create_model(NANO, num_classes=3))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(
        ValueError, match="trained from local-dir:gone, which can no longer be read .*--architecture NAME"
    ):
        stage(path, out)
    stage(path, out, architecture=NANO)
    assert convstem.load(out).num_classes == 3


HISTORIES: tuple[tuple[str, dict[str, Any], list[str]], ...] = (
    (NANO, {}, []),
    (NANO, {"pretrained": False, "seed": 1}, [SCRATCH]),
    (NANO, {"pretrained": False, "initial_checkpoint": "x.pth"}, []),
    (f"{NANO}.cifar10", {"pretrained": True}, [f"fine-tuned from {NANO}.cifar10"]),
    (
        "vit_ti16_convstem.augreg_in21k_ft_in1k",
        {"pretrained": True},
        [
            f"transplanted from timm/{TI}.augreg_in21k_ft_in1k",
            "fine-tuned from vit_ti16_convstem.augreg_in21k_ft_in1k",
        ],
    ),
)


@pytest.mark.parametrize(("arch", "args", "expected"), HISTORIES)
def test_history_of_a_checkpoint(arch: str, args: dict[str, Any], expected: list[str]) -> None:
    assert [str(step) for step in history(arch, args, {})] == expected


def test_a_random_models_card_says_nothing_of_its_origin(tmp_path: Path) -> None:
    for folder, model in (
        ("ours", timm.create_model("vit_ti16_convstem", depth=1)),
        ("twin", convstem.transplant(timm.create_model(TI, depth=1))),
    ):
        (tmp_path / folder).mkdir()
        stage(model, tmp_path / folder)
        text = card_of(str(tmp_path / folder), license="mit")
        assert "ransplanted" not in text
        assert "\n## Origin\n\nNot recorded.\n" in text
        assert "not trained further" not in text
        assert ModelCard(text).data.base_model is None


def test_provenance_survives_save_load_and_timms_own_save(tmp_path: Path) -> None:
    model = timm.create_model(NANO, pretrained=True)
    record(model, [Step("transplanted from", "timm/x@0123"), Step("made from", "org/y@4567")])
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = convstem.load(tmp_path)
    said = ["transplanted from timm/x at commit 0123", "made from org/y at commit 4567"]
    assert [str(step) for step in steps(loaded.pretrained_cfg)] == said
    text = card_of(str(tmp_path), license="mit")
    assert "Transplanted from timm/x at commit 0123. Made from org/y at commit 4567." in text
    assert (ModelCard(text).data.base_model, ModelCard(text).data.license) == ("org/y", "mit")
    fresh = timm.create_model(f"local-dir:{tmp_path}", pretrained=False)
    assert steps(fresh.pretrained_cfg) == ()  # the config was used without the weights


def test_a_folders_card_runs_where_it_lies_and_names_the_repository_after_a_push(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(main, ["card", str(saved), "--license", "mit"])
    assert done.exit_code == 0, done.output
    assert "ORG/NAME" not in done.output
    monkeypatch.chdir(saved)
    blocks = [block.split("```")[0] for block in done.output.split("```python\n")[1:]]
    models = []
    for block in blocks:
        scope: dict[str, Any] = {}
        exec(block, scope)
        models.append(scope["model"])
    assert [type(model).__module__.partition(".")[0] for model in models] == ["timm", "torchvision"]
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(models[0](x), models[1](x), atol=1e-5, rtol=1e-5)
    pushed = located(done.output, "me/mine")
    for line in ('"hf-hub:me/mine"', 'load("me/mine", layout="torchvision")', 'from_pretrained("me/mine")'):
        assert line in pushed
    assert "." not in [part.strip('"') for part in pushed.split("(")]


def test_a_card_without_a_licence_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="a licence is required"):
        card_of(str(saved))


TRANSPLANT = """
import timm, convstem
from tests.support.assertions import randomise
twin = convstem.transplant("hf-hub:org/source")
print(convstem.push(twin, "writer/twin", license="mit").commit)
"""
TRAIN = """
import argparse, torch, timm
model = timm.create_model("hf-hub:writer/twin", pretrained=True)
with torch.no_grad():
    model.head.weight.add_(1)
args = argparse.Namespace(model="hf-hub:writer/twin", pretrained=True, model_kwargs={{}})
torch.save({{"arch": "hf-hub:writer/twin", "state_dict": model.state_dict(), "args": args}}, {path!r})
"""
LOAD = """
import timm, torch, convstem
from transformers import AutoModelForImageClassification
name = "writer/tuned"
assert convstem.verify(name).ok, convstem.verify(name)
x = torch.rand(1, 3, 224, 224)
models = [timm.create_model(f"hf-hub:{name}", pretrained=True).eval(), convstem.load(name, layout="torchvision")]
models.append(AutoModelForImageClassification.from_pretrained(name).eval())
with torch.no_grad():
    a, b, c = models[0](x), models[1](x), models[2](x).logits
torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
torch.testing.assert_close(a, c, atol=1e-4, rtol=1e-4)
"""


def put_source(hub: HubServer, folder: Path, **changes: Any) -> str:
    """Commit a patchify model to ``org/source`` and return the commit."""
    timm.models.save_for_hf(randomise(timm.create_model(TI, **changes)), folder, safe_serialization=True)
    state = load_file(folder / "model.safetensors")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    hub.store.create("org/source")
    return hub.store.commit("org/source", "main", {p.name: p.read_bytes() for p in folder.iterdir()})


def run_all(env: dict[str, str], *codes: str) -> None:
    """Run each piece of code in a separate process."""
    for code in codes:
        done = run_python(code, timeout=300, **env)
        assert done.returncode == 0, done.stderr


def hub_settings(hub: HubServer, cache: str) -> dict[str, str]:
    return {**hub.env, "HF_TOKEN": "writer", "HF_HUB_CACHE": cache, "HF_HUB_DOWNLOAD_TIMEOUT": "30"}


def check_cards(hub: HubServer, commit: str) -> None:
    first = ModelCard(hub.store.read("writer/twin", "README.md").decode())
    assert f"Transplanted from org/source at commit {commit}." in first.text
    assert first.data.base_model == "org/source"
    second = ModelCard(hub.store.read("writer/tuned", "README.md").decode())
    assert f"Transplanted from org/source at commit {commit}. Fine-tuned from writer/twin." in second.text
    assert "not trained further" not in second.text
    assert second.data.base_model == "writer/twin"


def push(path: Path) -> str:
    return f"import convstem\nconvstem.push({str(path)!r}, 'writer/tuned', license='mit')"


@pytest.mark.full
def test_transplant_push_train_push_verify_load_everywhere(hub: HubServer, cache: str, tmp_path: Path) -> None:
    commit = put_source(hub, tmp_path / "source", num_classes=5)
    path = tmp_path / "last.pth.tar"
    run_all(hub_settings(hub, cache), TRANSPLANT, TRAIN.format(path=str(path)), push(path), LOAD)
    check_cards(hub, commit)


@pytest.mark.full
def test_the_same_with_timms_own_train_py(hub: HubServer, cache: str, tmp_path: Path, timm_scripts: Scripts) -> None:
    commit = put_source(hub, tmp_path / "source", num_classes=CLASSES, depth=2)
    settings = hub_settings(hub, cache)
    run_all(settings, TRANSPLANT)
    env = {**settings, "HF_HUB_OFFLINE": "0"}  # the test process itself is offline
    run = train(timm_scripts, "life", "--model", "hf-hub:writer/twin", "--pretrained", env=env)
    assert run.checkpoint["arch"] == "hf-hub:writer/twin"
    twin, tuned = tmp_path / "twin.safetensors", run.weights
    twin.write_bytes(hub.store.read("writer/twin", "model.safetensors"))
    started = load_file(twin)
    gap = float((started["head.weight"] - tuned["head.weight"]).abs().max())
    assert 0 < gap < 0.1  # trained from these weights: Adam's steps are 1e-3
    run_all(settings, push(run.folder / "last.pth.tar"), LOAD)
    check_cards(hub, commit)
    pushed = tmp_path / "tuned.safetensors"
    pushed.write_bytes(hub.store.read("writer/tuned", "model.safetensors"))
    assert largest_gap(load_file(pushed), tuned) == 0
