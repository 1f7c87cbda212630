# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""If the Hub's cache is deleted during use, the interrupted call runs again."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from convstem.errors import HubError
from convstem.hub.failures import _GIVEN, TRIES, again_if_deleted, given
from tests.support.everyday import one_in
from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.call_table import CALLS, SUM, put_models
from tests.support.hub_server.fixtures import cache, client, hub, repo, server  # noqa: F401


def test_again_only_if_a_file_is_gone(tmp_path: Path) -> None:
    calls: list[int] = []

    @again_if_deleted
    def use(fails: int, delete: bool) -> str:
        calls.append(1)
        path = tmp_path / "file"
        path.touch()
        given([path])
        if len(calls) <= fails:
            if delete:
                path.unlink()
            raise ValueError("mine")
        return "used"

    assert use(2, True) == "used" and len(calls) == 3
    calls.clear()
    with pytest.raises(ValueError, match="mine"):
        use(1, False)
    assert len(calls) == 1
    calls.clear()
    with pytest.raises(HubError, match="file keeps being deleted from the Hub's cache") as caught:
        use(99, True)
    assert len(calls) == TRIES and isinstance(caught.value.__cause__, ValueError)
    assert _GIVEN.get() is None  # what is given outside belongs to nobody


# Deletes the cache during a chosen call of a function, `times` times.
DELETE = """
import shutil, {module} as module
real, left = module.{name}, [{times}]
def deleting(*args, **kwargs):
    {before}
    result = real(*args, **kwargs)
    {after}
    return result
def delete():
    if left[0]:
        left[0] -= 1
        shutil.rmtree({cache!r}, True)
module.{name} = deleting
try:
    {call}
finally:
    module.{name} = real
"""

PLACES = {
    "after the listing": ("convstem.hub.read", "list_files", "after"),
    "before a download": ("convstem.hub.read", "download", "before"),
    "after a download": ("convstem.hub.read", "download", "after"),
    "before a hash": ("convstem.hub.repo_cache", "file_digest", "before"),
    "after a hash": ("convstem.hub.repo_cache", "file_digest", "after"),
    "before a ref": ("convstem.hub.repo_cache", "store", "before"),
    "after all": ("convstem.hub.repo_cache", "store", "after"),
    "before the header": ("convstem.files.safetensors", "check_header", "before"),
    "after the header": ("convstem.files.safetensors", "check_header", "after"),
}


def run(client: Client, cache: str, call: str, place: str, times: int) -> Any:
    module, name, when = PLACES[place]
    code = (CALLS[call] if call != "pull" else "convstem.pull('org/ours', out={out!r}, overwrite=True)\n") + (
        SUM
        if call != "pull"
        else "from safetensors.torch import load_file\nmodel = load_file({out!r} + '/model.safetensors')" + SUM
    )
    code = code.replace("{out!r}", repr(cache + "-out"))
    steps = {"before": "pass", "after": "pass", when: "delete()"}
    body = code.replace("\n", "\n    ")
    return client(DELETE.format(module=module, name=name, times=times, cache=cache, call=body, **steps))


@pytest.fixture
def models(hub: HubServer, client: Client, cache: str, tmp_path: Path) -> HubServer:
    put_models(hub, tmp_path)
    client(f"import convstem, timm, huggingface_hub.constants as c\nc.HF_HUB_CACHE = {cache!r}")
    return hub


PAIRS = [(call, place) for call in CALLS if call != "create_model" for place in PLACES]


@pytest.mark.parametrize(("call", "place"), one_in(4, PAIRS))
def test_a_cache_deleted_once(call: str, place: str, models: HubServer, client: Client, cache: str) -> None:
    right = run(client, cache, call, place, 0)
    assert right.error is None, right.output
    shutil.rmtree(cache)
    outcome = run(client, cache, call, place, 1)
    assert outcome.error is None, outcome.output
    assert outcome.value == right.value


@pytest.mark.parametrize("place", one_in(2, ["before the header", "after a download"]))
def test_a_cache_deleted_again_and_again(place: str, models: HubServer, client: Client, cache: str) -> None:
    outcome = run(client, cache, "load", place, 99)
    assert outcome.kind == "HubError"
    assert "keeps being deleted from the Hub's cache while it is used: stop what clears" in outcome.error
