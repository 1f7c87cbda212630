"""The cache beside the Hub's: transplanted once, checked once, never in the way."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from convstem.cli.main import main
from convstem.files import cache as local_cache
from convstem.transplanting import algebra, state_dicts, surgery
from convstem.transplanting import kept as transplant_cache
from tests.support.assertions import randomise

TI16 = "vit_ti16_convstem"
TIMM_TI16 = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("CONVSTEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def plain(hub_file: Callable[..., None]) -> Any:
    model = randomise(timm.create_model("vit_tiny_patch16_224", depth=1))
    hub_file(TIMM_TI16, model.state_dict())
    return model


@pytest.fixture
def transplants(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Count how often a stem is computed."""
    calls: list[Any] = []
    compute = algebra.transplant_stem

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return compute(*args, **kwargs)

    monkeypatch.setattr(state_dicts, "transplant_stem", count)
    return calls


def load(**arguments: Any) -> dict[str, Tensor]:
    return timm.create_model(TI16, pretrained=True, depth=1, **arguments).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def stems(cache: Path) -> list[Path]:
    return sorted((cache / "stems").glob("*.safetensors"))


def test_the_second_load_computes_nothing_and_gives_the_same_bits(
    cache: Path, plain: Any, transplants: list[Any]
) -> None:
    first = load()
    assert len(transplants) == 1
    assert len(stems(cache)) == 1
    assert same(load(), first)
    assert len(transplants) == 1


def test_whatever_the_result_depends_on_is_in_the_key(
    cache: Path, plain: Any, transplants: list[Any], hub_file: Callable[..., None]
) -> None:
    first = load()
    load(in_chans=1)
    load(stem_channels=[32, 48, 192, 768])
    assert len(transplants) == 3
    hub_file(TIMM_TI16, randomise(plain, seed=5).state_dict())  # the same repository with other weights
    assert not same(load(), first)
    assert len(transplants) == 4
    assert len(stems(cache)) == 4


def test_the_report_comes_back_and_every_tensor_in_its_place(cache: Path) -> None:
    plain = randomise(timm.create_model("vit_tiny_patch16_224", depth=1))
    reports, states = [], []
    for _ in range(2):
        model = timm.create_model("vit_tiny_patch16_224", depth=1)
        model.load_state_dict(plain.state_dict())
        surgery.swap_stem(model, cached=True)
        reports.append(model.transplant_report)
        states.append(model.state_dict())
    assert same(*states)
    assert reports[0] == reports[1]
    assert reports[0].exact


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "emptied", "without its report"])
def test_a_damaged_stem_is_computed_again(cache: Path, plain: Any, transplants: list[Any], damage: str) -> None:
    first = load()
    (path,) = stems(cache)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    state = load_file(path)
    if damage == "without its report":
        save_file(state, path)
    else:
        path.write_bytes({"flipped bit": bytes(content), "truncated": bytes(content[:-9]), "emptied": b""}[damage])
    assert same(load(), first)
    assert len(transplants) == 2
    assert same(load(), first)
    assert len(transplants) == 2  # it was mended


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "denied")])
def test_a_cache_that_cannot_be_written_costs_time_only(
    cache: Path, plain: Any, transplants: list[Any], monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(transplant_cache, "save_file", fail)
        first = load()
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size and "stems" in path.parts]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert same(load(), first)
    assert len(transplants) == 2
    assert not list(cache.rglob(".writing-*"))
    assert same(load(), first)
    assert len(stems(cache)) == 1


def test_a_file_in_the_place_of_the_cache_folder(cache: Path, plain: Any, transplants: list[Any]) -> None:
    cache.write_text("not a folder")
    assert same(load(), load())
    assert len(transplants) == 2


def test_the_cache_command_shows_and_clears(cache: Path, plain: Any, transplants: list[Any]) -> None:
    first = load()
    listed = json.loads(CliRunner().invoke(main, ["cache", "--json"]).output)
    assert listed["folder"] == str(cache)
    assert listed["kinds"]["stems"]["files"] == 1
    assert listed["kinds"]["checked"]["files"] == 1
    output = CliRunner().invoke(main, ["cache", "--clear"]).output
    assert f"stems: 1 files, {listed['kinds']['stems']['bytes'] / 1e6:.1f} MB" in output
    assert "removed: " in output
    assert local_cache.entries() == []
    assert same(load(), first)
    assert len(transplants) == 2
    assert CliRunner().invoke(main, ["cache", "--clear"]).exit_code == 0
    assert "stems: 0 files" in CliRunner().invoke(main, ["cache"]).output


PROCESS = """
import hashlib, sys, timm
from convstem.transplanting import state_dicts
compute, calls = state_dicts.transplant_stem, []
state_dicts.transplant_stem = lambda *a, **k: calls.append(1) or compute(*a, **k)
model = timm.create_model("vit_ti16_convstem", pretrained=True, depth=1)
digest = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in model.state_dict().values()))
print(len(calls), digest.hexdigest())
"""


@pytest.mark.full
def test_several_processes_at_once_compute_one_stem(cache: Path, plain: Any) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-c", PROCESS]
    jobs = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    results = [job.communicate(timeout=300)[0].split() for job in jobs]
    assert sum(int(calls) for calls, _ in results) == 1
    assert len({digest for _, digest in results}) == 1
    assert len(stems(cache)) == 1
    assert not list(Path(cache).rglob(".writing-*"))


def test_a_cache_that_may_not_be_cleared_is_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    done = CliRunner().invoke(main, ["cache", "--clear"])
    assert done.exit_code == 1 and f"cannot clear {cache / 'checked'}: Permission denied" in done.output
