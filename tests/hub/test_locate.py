# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""Weights of every kind of name are verified, and no config can bypass that."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import load_file, save_file

import convstem
from convstem.registry import tables
from tests.support.assertions import randomise
from tests.support.hub_server import Client, Fault, HubServer
from tests.support.hub_server.fixtures import cache, client, hub, server  # noqa: F401

NANO = "vit_nano4_convstem"
TAG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SOURCE = f"timm/{TAG}"

# Counts calls of huggingface_hub's download for weights from outside convstem.hub.
COUNT = """
import inspect, huggingface_hub, huggingface_hub.file_download, timm.models._hub as timm_hub, timm, torch, convstem
asked = []
def watch(function):
    def download(repo_id, filename, *args, **kwargs):
        callers = {frame.frame.f_globals.get("__name__", "") for frame in inspect.stack()}
        if filename.endswith((".safetensors", ".bin")) and not any(c.startswith("convstem.hub.") for c in callers):
            asked.append(filename)
        return function(repo_id, filename=filename, *args, **kwargs)
    return download
huggingface_hub.hf_hub_download = watch(huggingface_hub.hf_hub_download)
timm_hub.hf_hub_download = watch(timm_hub.hf_hub_download)
"""


# In these tests the tag's file is a shallow model with three classes, so its architecture refuses it after the fetch.
SUPPRESSED = """
import contextlib
asked.clear()
with contextlib.suppress(RuntimeError):
    {call}
result = list(asked)
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of a small patchify model and of one of ours."""
    patchify, ours = tmp_path_factory.mktemp("patchify"), tmp_path_factory.mktemp("ours")
    timm.models.save_for_hf(
        randomise(timm.create_model(TAG.split(".")[0], depth=1, num_classes=3)), patchify, safe_serialization=True
    )
    timm.models.save_for_hf(timm.create_model(NANO, pretrained=True), ours, safe_serialization=True)
    return {"patchify": files_of(patchify), "ours": files_of(ours)}


def put(hub: HubServer, repo: str, files: dict[str, bytes], **config: Any) -> None:
    """Commit a model with changed config: fields of ``pretrained_cfg``, or ``root``/``model_args`` objects."""
    content = json.loads(files["config.json"])
    content |= config.pop("root", {})
    content["model_args"] = {**content.get("model_args", {}), **config.pop("model_args", {})}
    content["pretrained_cfg"] |= config
    if repo not in hub.store.repos:
        hub.store.create(repo)
    hub.store.commit(repo, "main", {**files, "config.json": json.dumps(content).encode()})


CALLS = {
    "transplant a tag": f"convstem.transplant({TAG!r}, pretrained=True)",
    "transplant hf-hub:": "convstem.transplant('hf-hub:org/patchify')",
    "create_model hf-hub:": "timm.create_model('hf-hub:org/ours', pretrained=True)",
    "load": "convstem.load('org/ours')",
}


@pytest.mark.full
def test_weights_reach_us_through_one_function_only(
    hub: HubServer, client: Client, cache: str, models: dict[str, dict[str, bytes]]
) -> None:
    put(hub, "org/patchify", models["patchify"])
    put(hub, "org/ours", models["ours"])
    put(hub, SOURCE, models["patchify"])
    client(COUNT + f"import huggingface_hub.constants as c\nc.HF_HUB_CACHE = {cache!r}")
    for call in CALLS.values():
        outcome = client(SUPPRESSED.format(call=call))
        assert outcome.value == [], call
    stock = client(SUPPRESSED.format(call="timm.create_model('hf-hub:org/patchify', pretrained=True)"))
    assert stock.value != []  # negative control: timm's own download is counted


@pytest.mark.full
@pytest.mark.parametrize("source", ["hf-hub:org/patchify", "org/ours"])
def test_a_flipped_byte_is_fetched_again(
    source: str, hub: HubServer, client: Client, cache: str, models: dict[str, dict[str, bytes]]
) -> None:
    put(hub, "org/patchify", models["patchify"])
    put(hub, "org/ours", models["ours"])
    what = f"convstem.transplant({source!r})" if source.startswith("hf-hub") else f"convstem.load({source!r})"
    hub.arm(Fault(flip=-2000))
    client(f"import convstem, timm, huggingface_hub.constants as c\nc.HF_HUB_CACHE = {cache!r}")
    outcome = client(f"result = float({what}.head.weight.detach().double().sum())")
    files = models["patchify" if source.startswith("hf-hub") else "ours"]
    Path(cache).mkdir(exist_ok=True)
    (Path(cache) / "right.safetensors").write_bytes(files["model.safetensors"])
    assert outcome.error is None, outcome.output
    assert outcome.value == float(load_file(Path(cache) / "right.safetensors")["head.weight"].double().sum())
    hub.arm(Fault(flip=-2000, times=99))
    again = client(f"import shutil; shutil.rmtree({cache!r}); {what}")
    assert "is damaged after two downloads: expected hash" in str(again.error)


@pytest.mark.full
def test_a_pickle_is_no_source_of_a_transplant(
    hub: HubServer, client: Client, cache: str, models: dict[str, dict[str, bytes]]
) -> None:
    put(hub, "org/pickle", {"config.json": models["patchify"]["config.json"], "pytorch_model.bin": b"\x80\x02"})
    outcome = client(f"""
        import convstem, huggingface_hub.constants as c
        c.HF_HUB_CACHE = {cache!r}
        convstem.transplant("hf-hub:org/pickle")
    """)
    assert "only pickled weights" in str(outcome.error)


ORDERS: dict[str, dict[str, Any]] = {
    "custom_load": {"custom_load": "hf", "hf_hub_filename": "other.safetensors"},
    "file": {"file": "/etc/passwd", "url": "http://127.0.0.1:9/x.pth"},
    "filename": {"hf_hub_filename": "pytorch_model.bin"},
    "state_dict": {"state_dict": {"head.bias": [0]}},
    "first_conv": {"first_conv": "head", "classifier": "blocks.0.attn.qkv"},
}


@pytest.mark.full
@pytest.mark.parametrize("orders", ORDERS.values(), ids=list(ORDERS))
def test_no_field_of_a_config_changes_how_its_weights_are_fetched_or_checked(
    orders: dict[str, Any], hub: HubServer, client: Client, cache: str, models: dict[str, dict[str, bytes]]
) -> None:
    put(hub, "org/ours", {**models["ours"], "other.safetensors": b"not a file"}, **orders)
    hub.arm(Fault(flip=-2000))
    client(f"import convstem, timm, huggingface_hub.constants as c\nc.HF_HUB_CACHE = {cache!r}")
    outcome = client(
        "result = float(timm.create_model('hf-hub:org/ours', pretrained=True).head.weight.detach().double().sum())"
    )
    right = timm.create_model(NANO, pretrained=True).head.weight.detach().double().sum()
    assert outcome.error is None, outcome.output
    assert outcome.value == float(right)
    fetched = [path for origin, method, path, _ in hub.log if method == "GET" and origin == "cdn"]
    assert len(fetched) == 2  # the flipped file was noticed


def test_embedded_weights_are_hashed_once_in_timm_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "registry"
    shutil.copytree(tables.data_dir("registry"), data)
    file = next(data.glob("**/*.safetensors"))
    overlay = {"file": str(file)}
    monkeypatch.setattr(tables, "data_dir", lambda name: data)
    assert timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=overlay)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: expected sha256 .*reinstall convstem"):
        timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=overlay)


def test_weights_that_are_only_at_an_url_are_not_transplanted() -> None:
    with pytest.raises(OSError, match="not on the Hub but only at https://.*without a hash"):
        convstem.transplant("vit_huge_patch16_gap_448.in1k_ijepa")


def write_ours(folder: Path, models: dict[str, dict[str, bytes]], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in models["ours"].items():
        (folder / name).write_bytes(content)
    content = json.loads(models["ours"]["config.json"])
    content |= config.pop("root", {})
    content["model_args"] = {**content.get("model_args", {}), **config.pop("model_args", {})}
    content["pretrained_cfg"] |= config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "blocks": ({"model_args": {"depth": 10**6}}, "depth = 1000000 is too large"),
    "more blocks than tensors": ({"model_args": {"depth": 500}}, "more than the weights beside it"),
    "classes": ({"num_classes": 10**9, "root": {"num_classes": 10**9}}, "num_classes = 1000000000 is too large"),
    "width": ({"model_args": {"embed_dim": 15360}}, "more than the weights beside it"),
    "two heads": ({"model_args": {"num_classes": 7}}, "contradicts itself about num_classes"),
    "unknown field": ({"colour": "red"}, "timm does not know colour in pretrained_cfg"),
    "mean": ({"mean": None}, "mean must be a list of numbers; got null"),
    "std": ({"std": [0, 0, 0]}, "std must be a list of numbers above 0"),
    "input_size": ({"input_size": "3x32x32"}, "input_size must be channels, height and width"),
    "pooling": ({"model_args": {"global_pool": "bogus"}}, "global_pool must be one of"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_verified_means_that_it_loads(case: str, tmp_path: Path, models: dict[str, dict[str, bytes]]) -> None:
    config, message = HOSTILE[case]
    folder = write_ours(tmp_path / "m", models, **config)
    check = {check.name: check for check in convstem.verify(folder).checks}["config"]
    assert not check.ok
    assert message in check.detail
    with pytest.raises(ValueError, match=message):
        convstem.load(folder)


def test_a_sound_folder_is_verified(tmp_path: Path, models: dict[str, dict[str, bytes]]) -> None:
    report = convstem.verify(write_ours(tmp_path / "m", models))
    assert [check.name for check in report.checks if not check.ok] == ["license"]


def test_integers_are_not_cast_silently(tmp_path: Path, models: dict[str, dict[str, bytes]]) -> None:
    folder = write_ours(tmp_path / "m", models)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "head.weight": state["head.weight"].mul(100).char()}, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"holds integers where .*floating-point.*head\.weight"):
        convstem.load(folder)
    checks = {check.name: check for check in convstem.verify(folder).checks}
    assert "head.weight (file integers, model floating-point numbers)" in checks["shapes"].detail
    with pytest.raises(RuntimeError, match="holds integers where"):
        timm.create_model(NANO).load_state_dict({**state, "head.bias": state["head.bias"].int()})


def test_nan_in_a_state_dict_overlay_is_refused() -> None:
    state = timm.create_model(NANO, pretrained=True).state_dict()
    overlay = {"state_dict": {**state, "head.bias": state["head.bias"] * float("nan")}, "file": None}
    with pytest.raises(ValueError, match=r"holds NaN or Inf in head\.bias"):
        timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=overlay)
