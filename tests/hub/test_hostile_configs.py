# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""A hostile config raises one of our errors, naming the fault, before anything is built."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import convstem
from convstem.errors import ArgumentError, CheckpointError, ConvStemError, InvalidFileError
from convstem.hub.config import check_stated
from convstem.hub.model import create_source
from convstem.publishing.push import stage
from convstem.registry import catalog
from convstem.registry.tables import trunks
from tests.support.assertions import randomise
from tests.support.hostile_configs import BROKEN, HOSTILE, OURS, Both, Change, change
from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.fixtures import cache, client, hub, server  # noqa: F401


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of our models, one on a timm trunk, and a patchify model."""
    root = tmp_path_factory.mktemp("models")
    convstem.pull("vit_nano4_convstem.cifar10", out=root / "ours")
    (root / "trunk").mkdir()
    stage(timm.create_model("beit_base_patch16_224_convstem", depth=2, embed_dim=48, num_heads=3), root / "trunk")
    patchify = randomise(timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=10))
    timm.models.save_for_hf(patchify, root / "patchify", safe_serialization=True)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def spoilt(folders: dict[str, Path], tmp_path: Path) -> Callable[[str, Any], Path]:
    """A function that copies a folder and changes or replaces its config."""

    def spoil(which: str, mutation: Any) -> Path:
        folder = shutil.copytree(folders[which], tmp_path / which)
        if isinstance(mutation, bytes):
            (folder / "config.json").write_bytes(mutation)
        else:
            change(folder, mutation)
        return folder

    return spoil


def blamed(error: str, mutation: Any) -> bool:
    fields = mutation.fields if isinstance(mutation, (Change, Both)) else ["config.json"]
    return any(field in error for field in fields)


ALL: dict[str, Any] = {**HOSTILE, **OURS, **BROKEN}


def test_what_is_not_spoilt_loads(folders: dict[str, Path]) -> None:
    for name in ("ours", "trunk"):
        assert convstem.load(folders[name])
        failed = [check.name for check in convstem.verify(folders[name]).checks if not check.ok]
        assert failed in ([], ["license"])
    assert create_source(f"local-dir:{folders['patchify']}")


@pytest.mark.parametrize("name", ALL)
def test_load(name: str, spoilt: Callable[[str, Any], Path]) -> None:
    with pytest.raises(ConvStemError) as caught:
        convstem.load(spoilt("ours", ALL[name]))
    assert isinstance(caught.value, CheckpointError) or blamed(str(caught.value), ALL[name]), caught.value


@pytest.mark.full
@pytest.mark.parametrize("which", ["ours", "trunk"])
@pytest.mark.parametrize("name", ALL)
def test_verify(name: str, which: str, spoilt: Callable[[str, Any], Path]) -> None:
    stem = isinstance(ALL[name], Change) and any("stem" in field for field in ALL[name].fields)
    if which == "trunk" and (stem or name in NOT_IN_BEIT):
        pytest.skip("the other model's stem, or arguments that BEiT does not have")
    folder = spoilt(which, ALL[name])
    details = [check.detail for check in convstem.verify(folder).checks if check.name in ("config", "shapes")]
    assert any("the weights do not fit" in detail or blamed(detail, ALL[name]) for detail in details), details
    with pytest.raises(ConvStemError):
        convstem.load(folder)


NOT_IN_BEIT = {"class_token a string"}


@pytest.mark.full
@pytest.mark.parametrize("name", [*HOSTILE, *BROKEN])
def test_the_source_of_a_transplant(name: str, spoilt: Callable[[str, Any], Path]) -> None:
    with pytest.raises(ConvStemError) as caught:
        create_source(f"local-dir:{spoilt('patchify', ALL[name])}")
    assert isinstance(caught.value, CheckpointError) or blamed(str(caught.value), ALL[name]), caught.value


def test_an_argument_of_the_caller_is_not_blamed_on_the_config(folders: dict[str, Path]) -> None:
    with pytest.raises(ArgumentError, match="pooling .or none. is supported"):  # timm's own words
        timm.create_model(f"local-dir:{folders['ours']}", pretrained=True, global_pool="bogus")


def test_positions_are_resized_for_a_caller_and_never_for_a_config(
    folders: dict[str, Path], spoilt: Callable[[str, Any], Path]
) -> None:
    assert timm.create_model(f"local-dir:{folders['ours']}", pretrained=True, img_size=64).pos_embed.shape[1] == 257
    with pytest.raises(CheckpointError, match=r"pos_embed \(file \[1, 65, 96\], model \[1, 257, 96\]\)"):
        timm.create_model(f"local-dir:{spoilt('ours', HOSTILE['images of twice the size'])}", pretrained=True)


def test_every_config_that_timm_or_convstem_has_is_taken() -> None:
    names = [name for name in (*catalog.architectures(), *trunks().values()) if timm.is_model(name)]
    assert len(names) > 400
    for name in names:
        for tag, cfg in timm.models.get_arch_pretrained_cfgs(name).items():
            saved = json.loads(json.dumps(cfg.to_dict()))
            check_stated(name, saved, {})
            with pytest.raises(InvalidFileError):  # negative control
                check_stated(name, {**saved, "mean": tag}, {})


ABSURD = (
    "10^6 blocks",
    "400 blocks",
    "width 16384",
    "10^9 classes in pretrained_cfg only",
    "10^6 classes in pretrained_cfg only",
    "images of 10^6 pixels a side",
    "images of 8192 pixels a side",
    "img_size [8192, 8192]",
)

CALLS = {
    "create_model": "timm.create_model('hf-hub:org/ours', pretrained=True)",
    "load": "convstem.load('org/ours')",
    "verify": "config = {c.name: c for c in convstem.verify('org/ours').checks}['config']\n"
    "assert not config.ok\nraise InvalidFileError(config.detail)",
    "transplant": "convstem.transplant('hf-hub:org/patchify')",
}

MEASURED = """
import resource, timm, torch, convstem
from convstem.errors import ArgumentError, InvalidFileError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = None
try:
    {call}
except InvalidFileError as error:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    result = [str(error), grown / 1024]
"""


@pytest.mark.full
@pytest.mark.parametrize("call", CALLS)
def test_an_absurd_config_is_refused_before_memory_is_taken(
    call: str, hub: HubServer, client: Client, cache: str, folders: dict[str, Path]
) -> None:
    put(hub, folders, None)
    client(f"import convstem, timm, huggingface_hub.constants as c\nc.HF_HUB_CACHE = {cache!r}")
    if call != "verify":
        assert client(CALLS[call]).error is None  # negative control; it also takes a valid model's memory
    for name in ABSURD:
        put(hub, folders, HOSTILE[name])
        outcome = client(MEASURED.replace("{call}", CALLS[call].replace("\n", "\n    ")))
        assert outcome.error is None, (name, outcome.output)
        message, megabytes = outcome.value
        assert blamed(message, HOSTILE[name]), message
        assert megabytes < 40, (name, megabytes)


def put(hub: HubServer, folders: dict[str, Path], mutation: Any) -> None:
    for name in ("ours", "patchify"):
        files = {path.name: path.read_bytes() for path in folders[name].iterdir()}
        config = json.loads(files["config.json"])
        if mutation:
            mutation(config)
        if f"org/{name}" not in hub.store.repos:
            hub.store.create(f"org/{name}")
        hub.store.commit(f"org/{name}", "main", {**files, "config.json": json.dumps(config).encode()})


def test_deep_nesting_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(BROKEN["deep"])
    with pytest.raises(InvalidFileError, match="config.json is not JSON"):
        convstem.load(tmp_path)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (1, 1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("key", ["pos_embed", "cls_token", "head.weight", "patch_embed.backbone.0.conv.weight"])
def test_tensors_of_other_shapes(key: str, shape: tuple[int, ...], folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["ours"], tmp_path / "ours")
    state = load_file(folder / "model.safetensors")
    save_file({**state, key: torch.zeros(shape)}, folder / "model.safetensors")
    with pytest.raises(ConvStemError, match=re.escape(key)):
        convstem.load(folder)
    with pytest.raises(RuntimeError, match=re.escape(key)):  # torch's message or ours
        timm.create_model("vit_nano4_convstem").load_state_dict({**state, key: torch.zeros(shape)})
    with pytest.raises(RuntimeError, match=re.escape(key)):
        overlay = {"file": None, "state_dict": {**state, key: torch.zeros(shape)}}
        timm.create_model("vit_nano4_convstem", pretrained=True, pretrained_cfg_overlay=overlay)
