# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""A saved model of ours is fetched once; its config is checked once, before the weights are fetched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm

from convstem.errors import MissingPathError, UnsupportedModelError
from convstem.hub.config import LOADED, Step, record, steps
from convstem.hub.model import create_source, read_model
from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.fixtures import cache, client, hub, repo, server  # noqa: F401

FETCH = """
from convstem.hub import model as m
from convstem.hub.source import resolve
read, asked = m.read_config, []
m.read_config = lambda path: asked.append(path.name) or read(path)
try:
    f = m.fetch_model(resolve({source!r}), {cache!r})
finally:
    m.read_config = read
result = [str(f.folder), f.config["architecture"], f.weights.name, f.repo_id, f.commit, f.immutable, f.hub_id, asked]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    timm.models.save_for_hf(timm.create_model("vit_nano4_convstem"), path, safe_serialization=True)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_listing_one_commit_one_check(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str], folder: Path
) -> None:
    old = repo(files_of(folder))
    commit = repo({"notes.txt": b"newer"})
    done = client(FETCH.format(source="org/m", cache=cache))
    assert done.value[1:] == ["vit_nano4_convstem", "model.safetensors", "org/m", commit, True, f"org/m@{commit}"] + [
        ["config.json"]
    ]
    assert (Path(done.value[0]) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert len([path for _, method, path, _ in hub.log if "/api/" in path]) == 1
    hub.log.clear()
    assert client(FETCH.format(source=f"hf-hub:org/m@{commit}", cache=cache)).value[4] == commit
    assert hub.log == []  # a commit in the cache needs no network
    assert client(FETCH.format(source=f"org/m@{old}", cache=cache)).value[4] == old


def test_a_config_that_is_not_ours_costs_no_weights(
    hub: HubServer, client: Client, cache: str, repo: Callable[..., str], folder: Path
) -> None:
    config = {"architecture": "vit_base_patch16_224", "pretrained_cfg": {}}
    repo({**files_of(folder), "config.json": json.dumps(config).encode()})
    assert "on a conv stem it is vit_b16_convstem" in client(FETCH.format(source="org/m", cache=cache)).error
    asked = [path for _, _, path, _ in hub.log]
    assert any("config.json" in path for path in asked)
    assert not any("model.safetensors" in path for path in asked)


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    found = read_model(folder)
    assert (found.folder, found.weights, found.immutable, found.hub_id) == (
        folder,
        folder / "model.safetensors",
        False,
        None,
    )
    assert found.config == json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(MissingPathError, match="has a config.json, but no model.safetensors"):
        read_model(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert read_model(tmp_path).weights.name == "pytorch_model.bin"
    other: dict[str, Any] = {"architecture": "vit_base_patch16_224", "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(UnsupportedModelError, match="expected a conv-stem architecture"):
        read_model(tmp_path)


def test_without_its_weights_a_model_has_neither_their_history_nor_their_licence(tmp_path: Path) -> None:
    model: Any = timm.create_model("vit_tiny_patch16_224", depth=1)
    model.pretrained_cfg["license"] = "mit"
    record(model, [Step(LOADED, "org/m")])
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded, built = (create_source(tmp_path, pretrained).pretrained_cfg for pretrained in (True, False))
    assert (steps(loaded), loaded["license"]) == ((Step(LOADED, "org/m"),), "mit")
    assert (steps(built), built.get("license")) == ((), None)
