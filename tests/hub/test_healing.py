# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""A damaged config that timm fetched before our code runs is repaired at once, or else by ``convstem pull``."""

from pathlib import Path

import pytest

import convstem
from tests.support.hub_server import Client, Fault, HubServer
from tests.support.hub_server.fixtures import cache, client, hub, server  # noqa: F401

pytestmark = pytest.mark.full

TIMM = "result = float(timm.create_model('hf-hub:org/ours', pretrained=True).head.weight.detach().sum())"
HEALERS = ("convstem.pull('org/ours')", "convstem.load('org/ours')", "convstem.verify('org/ours')")


@pytest.fixture
def ours(hub: HubServer, client: Client, cache: str, tmp_path: Path) -> HubServer:
    """A Hub with one of our models, and a client with an empty cache."""
    folder = convstem.pull("vit_nano4_convstem.cifar10", out=tmp_path / "ours")
    hub.store.create("org/ours")
    hub.store.commit("org/ours", "main", {path.name: path.read_bytes() for path in folder.iterdir()})
    client(f"import convstem, timm, huggingface_hub.constants as c\nc.HF_HUB_CACHE = {cache!r}")
    return hub


@pytest.mark.parametrize("healer", HEALERS)
def test_a_damaged_config_in_the_cache(healer: str, ours: HubServer, client: Client, cache: str) -> None:
    first = client(TIMM)
    assert first.error is None, first.output
    (config,) = Path(cache).glob("models--*/snapshots/*/config.json")
    config.resolve().write_bytes(b"\xff\xfe not a config")
    assert client(TIMM).kind == "UnicodeDecodeError"  # raised by timm before it calls us
    assert client(healer).error is None
    assert client(TIMM).value == first.value


def test_a_damaged_config_that_timm_can_still_read(ours: HubServer, client: Client, cache: str) -> None:
    first = client(TIMM)
    (config,) = Path(cache).glob("models--*/snapshots/*/config.json")
    content = config.read_bytes()
    config.resolve().write_bytes(content.replace(b"0.4914", b"0.5914"))
    assert "was damaged in the cache when timm read it" in str(client(TIMM).error)
    assert client(TIMM).value == first.value


def test_a_commit_that_the_repository_does_not_have(ours: HubServer, client: Client) -> None:
    foreign = (("X-Repo-Commit", "f" * 40),)
    ours.arm(*(Fault(origin="hub", method=m, path="config.json", times=99, replace=foreign) for m in ("HEAD", "GET")))
    assert client(TIMM).error is None
    assert client("convstem.load('org/ours')").error is None
    ours.arm()
    assert client(TIMM).error is None


def test_a_hang_up_while_the_config_is_fetched(ours: HubServer, client: Client) -> None:
    hang_up = Fault(origin="hub", method="GET", path="config.json", drop=10, times=1)
    ours.arm(hang_up)
    outcome = client("result = float(convstem.load('org/ours').head.weight.detach().sum())")
    assert outcome.error is None, outcome.output
    assert client(TIMM).value == outcome.value


def test_publish_goes_on_after_a_full_disk(ours: HubServer, client: Client) -> None:
    outcome = client("""
        from convstem.publishing import publish as publishing
        from safetensors import SafetensorError
        from convstem.registry import catalog
        from dataclasses import replace
        nano = catalog.weights()["vit_nano4_convstem.cifar10"]
        entries = {name: replace(nano, name=name) for name in ("vit_nano4_convstem.a", "vit_nano4_convstem.b")}
        before, catalog.weights, real = catalog.weights, lambda: entries, publishing.save_embedded
        def stage(entry, folder):
            if entry.name.endswith("a"):
                raise SafetensorError("I/O error: No space left on device (os error 28)")
            real(nano, folder)
        publishing.save_embedded = stage
        result = [[row.action, row.detail] for row in convstem.publish("writer")]
        catalog.weights, publishing.save_embedded = before, real
    """)
    assert outcome.error is None, outcome.output
    (failed, words), (published, _) = outcome.value
    assert (failed, published) == ("failed", "published")
    assert "No space left on device" in words
