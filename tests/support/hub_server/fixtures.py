"""Fixtures for tests that use the Hub server; import them where needed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server.client import Client
from tests.support.hub_server.server import HubServer

REPO = "org/m"


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    """One Hub for all tests of a file."""
    hub = HubServer()
    yield hub
    hub.close()


@pytest.fixture
def hub(server: HubServer) -> HubServer:
    """The Hub, empty, without faults."""
    server.arm()
    server.store.repos.clear()
    server.store.contents.clear()
    server.parts.clear()
    server.chunk, server.silent = None, False
    return server


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A logged-in client."""
    process = Client(**server.env, HF_HOME=str(tmp_path_factory.mktemp("home")), HF_TOKEN="writer")
    yield process
    process.close()


@pytest.fixture(scope="module")
def anonymous(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client without a token."""
    process = Client(**server.env, HF_HOME=str(tmp_path_factory.mktemp("home")))
    yield process
    process.close()


@pytest.fixture
def cache(tmp_path: Path, client: Client) -> str:
    """An empty Hub cache, named ``cache`` in both clients."""
    return str(tmp_path / "cache")


@pytest.fixture
def repo(hub: HubServer) -> Callable[..., str]:
    """A function that commits files to ``org/m`` and creates it on the first call."""

    def commit(files: Any, **options: Any) -> str:
        if REPO not in hub.store.repos:
            hub.store.create(REPO)
        return hub.store.commit(REPO, "main", files, **options)

    return commit
