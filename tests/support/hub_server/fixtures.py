"""Fixtures for the tests that talk to the Hub server: import them where they are used."""

import pytest

from tests.support.hub_server.client import Client
from tests.support.hub_server.server import HubServer

REPO = "org/m"


@pytest.fixture(scope="module")
def server():
    """One Hub for all tests of a file."""
    hub = HubServer()
    yield hub
    hub.close()


@pytest.fixture
def hub(server):
    """The Hub, empty, without faults."""
    server.arm()
    server.store.repos.clear()
    server.store.contents.clear()
    server.parts.clear()
    server.chunk, server.silent = None, False
    return server


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    """A client that is logged in."""
    process = Client(**server.env, HF_HOME=str(tmp_path_factory.mktemp("home")), HF_TOKEN="writer")
    yield process
    process.close()


@pytest.fixture(scope="module")
def anonymous(server, tmp_path_factory):
    """A client without a token."""
    process = Client(**server.env, HF_HOME=str(tmp_path_factory.mktemp("home")))
    yield process
    process.close()


@pytest.fixture
def cache(tmp_path, client):
    """An empty Hub cache, which ``cache`` names in both clients."""
    return str(tmp_path / "cache")


@pytest.fixture
def repo(hub):
    """A function that commits files to ``org/m``, created on the first call."""

    def commit(files, **options):
        if REPO not in hub.store.repos:
            hub.store.create(REPO)
        return hub.store.commit(REPO, "main", files, **options)

    return commit
