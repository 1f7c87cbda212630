"""``convstem verify`` on folders: a valid one passes every check, and each fault fails its own check."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import convstem
from convstem.cli.main import main
from convstem.publishing.card import render
from convstem.publishing.card_facts import facts_of_entry
from convstem.registry import catalog
from convstem.registry.licenses import check_license, license_metadata, license_of_card, refusal

NANO = "vit_nano4_convstem.cifar10"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convstem.pull(NANO, out=tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A folder that tests may damage."""
    for path in good.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def failed(folder: Path) -> dict[str, str]:
    return {check.name: check.detail for check in convstem.verify(folder).checks if not check.ok}


def config(**changes: Any) -> Callable[[Path], None]:
    """Return a function that changes ``config.json``: a dict is merged, None removes a field."""

    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        for name, value in changes.items():
            content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
        path.write_text(json.dumps(content))

    return spoil


def weights(change: Callable[..., Any]) -> Callable[[Path], None]:
    """Return a function that changes the state dict."""

    def spoil(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        save_file(change(state) or state, folder / "model.safetensors")

    return spoil


def write(name: str, content: bytes) -> Callable[[Path], int]:
    return lambda folder: (folder / name).write_bytes(content)


def header(length: int) -> Callable[[Path], int]:
    return lambda folder: (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")


def test_a_good_folder_passes(good: Path) -> None:
    report = convstem.verify(good)
    assert report.ok, report
    assert [check.name for check in report.checks] == ["header", "config", "shapes", "labels", "finite", "license"]
    assert report.sha256 == catalog.weights()[NANO].sha256


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def nan(state: Any) -> None:
    state["norm.weight"][3] = torch.nan


def negative(state: Any) -> None:
    state["patch_embed.backbone.0.bn.running_var"][0] = -1.0


CASES = {
    "config without weights": (lambda f: (f / "model.safetensors").unlink(), "header", "a config without weights"),
    "weights without config": (
        lambda f: (f / "config.json").unlink(),
        "config",
        "has no config.json; `convstem convert FILE",
    ),
    "truncated": (
        truncate,
        "header",
        "not a",
    ),
    "pickle": (write("model.safetensors", b"\x80\x04x" * 9), "header", "a pickle named as safetensors"),
    "header of 100 GB": (header(100 << 30), "header", "not a valid safetensors file"),
    "nan": (weights(nan), "finite", "NaN or Inf in norm.weight"),
    "negative variance": (
        weights(negative),
        "finite",
        "holds negative variances in patch_embed.backbone.0.bn.running_var .their roots are NaN",
    ),
    "missing tensor": (
        weights(lambda s: {k: v for k, v in s.items() if k != "norm.bias"}),
        "shapes",
        "the file lacks what the model needs: norm.bias",
    ),
    "surplus tensor": (
        weights(lambda s: s.update(x=torch.ones(1))),
        "shapes",
        "the model has no place for: x",
    ),
    "misshapen": (
        config(model_args={"mlp_ratio": 1.0}),
        "shapes",
        r"shapes differ: .*mlp.fc1.bias \(file \[\d+\], model \[\d+\]\)",
    ),
    "two heads": (config(num_classes=11), "config", "contradicts itself about num_classes: 10 in .*, 11 in the root"),
    "labels": (config(label_names=["a"]), "labels", "1 label_names for 10 classes"),
    "not JSON": (write("config.json", b"{"), "config", "config.json is not JSON"),
    "a list": (write("config.json", b"[]"), "config", "expected a JSON object, got a list"),
    "another architecture": (
        config(architecture="resnet50"),
        "config",
        "a conv-stem architecture of convstem, got",
    ),
    "unknown argument": (
        config(model_args={"evil": 1}),
        "config",
        "unknown model_args evil; vit_nano4_con",
    ),
    "builder argument": (
        config(model_args={"pretrained_strict": False}),
        "config",
        "unknown model_args pretrained",
    ),
    "location": (config(pretrained_cfg={"file": "../../x"}), "config", "must not say where weights are .*: file"),
    "pickle location": (config(model_args={"checkpoint_path": "/x"}), "config", "must not say .*: checkpoint_path"),
    "pickle name": (config(pretrained_cfg={"hf_hub_filename": "x.bin"}), "config", "must not say .*: hf_hub_filename"),
    "absurd depth": (config(model_args={"depth": 10**9}), "config", "depth = 1000000000 is too large; at most 512"),
    "absurd stem": (config(model_args={"stem_channels": [8] * 10**4}), "config", "stem_channels = .* is too large"),
    "absurd classes": (config(num_classes=10**9), "config", "num_classes = 1000000000 is too large"),
    "stem that does not fit": (
        config(model_args={"stem_strides": [3, 3]}),
        "config",
        "the product of stem_strides must equal patch_size",
    ),
    "no card": (lambda f: (f / "README.md").unlink(), "license", "README.md is missing, so there is no licence"),
    "no licence": (write("README.md", b"---\ntags: [x]\n---\n"), "license", "README.md names no licence"),
    "licence unknown": (write("README.md", b"---\nlicense: unknown\n---\n"), "license", "a licence is required"),
    "bad metadata": (
        write("README.md", b"---\nlicense: [x\n---\n"),
        "license",
        "metadata of README.md is not valid",
    ),
}


@pytest.mark.parametrize(("spoil", "name", "message"), CASES.values(), ids=CASES)
def test_each_fault_fails_its_check(folder: Path, spoil: Callable[[Path], object], name: str, message: str) -> None:
    spoil(folder)
    found = failed(folder)
    assert re.search(message, found[name]), found
    assert "finite" not in found or name in ("finite", "header")


def test_command(folder: Path) -> None:
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 0
    assert "ok      shapes   all 92 tensors have the shapes of the architecture" in result.output
    (folder / "README.md").unlink()
    result = CliRunner().invoke(main, ["verify", str(folder), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.output)["ok"] is False
    result = CliRunner().invoke(main, ["verify", "./nowhere"])
    assert result.exit_code == 1
    assert "there is no file or folder nowhere: verify takes the name of a model, a Hub repository" in result.output


def test_pull_of_names() -> None:
    with pytest.raises(ValueError, match="ships inside convstem, so nothing is downloaded; give a folder"):
        convstem.pull(NANO)
    with pytest.raises(KeyError, match="vit_nano4_convstem has no pretrained tag 'x'; it has cifar10"):
        convstem.pull("vit_nano4_convstem.x")


@pytest.mark.parametrize("license", ["", None, "unknown", "Apache 2.0", "none"])
def test_what_is_no_licence(license: str) -> None:
    with pytest.raises(ValueError, match="a licence is required, as an SPDX identifier in lower case"):
        check_license(license)


@pytest.mark.parametrize("license", ["cc-by-nc-nd-4.0", "cc-by-nd-4.0", "other", "unknown"])
def test_licences_that_forbid_publishing_a_transplant(license: str) -> None:
    assert f"the licence of the source ({license})" in refusal(license)


@pytest.mark.parametrize("license", ["apache-2.0", "cc-by-nc-4.0", "mit"])
def test_licences_that_allow_it(license: str) -> None:
    assert refusal(license) is None


@pytest.mark.parametrize(
    ("license", "stated"),
    [("mit", {"license": "mit"}), ("dinov3-license", {"license": "other", "license_name": "dinov3-license"})],
)
def test_a_licence_that_the_hub_does_not_list_is_given_by_its_name(license: str, stated: dict[str, str]) -> None:
    assert license_metadata(license) == stated
    text = render(replace(facts_of_entry(catalog.weights()[NANO]), license=license))
    assert {name: value for name, value in ModelCard(text).data.to_dict().items() if "license" in name} == stated
    assert license_of_card(text) == license
