"""Every fault that the server can inject gives the right bytes, or one clear error and a consistent cache."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.call_table import CALL_ROWS, CALLS, RAW, SILENT, put_models, run_call
from tests.support.hub_server.fault_table import CONVSTEM, ROWS, STOCK, run_row
from tests.support.hub_server.push_table import CONVSTEM_PUSH, PUBLISH, PUSH_ROWS, STOCK_PUSH, run_push_row


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    process = Client(**hub.env, HF_HOME=str(tmp_path_factory.mktemp("home")), HF_TOKEN="writer")
    yield process
    process.close()


def cases(rows: Any, slow: Any) -> list[Any]:
    return [pytest.param(row, id=row.name, marks=[pytest.mark.full] * slow(row)) for row in rows]


@pytest.mark.parametrize("row", cases(ROWS, lambda row: row.slow))
def test_download(hub: HubServer, client: Client, row: Any, tmp_path: Path) -> None:
    outcome = run_row(hub, client, row, CONVSTEM, tmp_path)
    assert re.search(row.expected, outcome), outcome
    assert "WRONG" not in outcome
    assert "POISONED" not in outcome
    if row.expected.startswith("right"):
        assert outcome.startswith(row.expected)


@pytest.mark.parametrize("name", ["one byte flipped, right length", "truncated, no X-Linked-Size"])
def test_negative_control_the_stock_client_loads_wrong_bytes(
    hub: HubServer, client: Client, name: str, tmp_path: Path
) -> None:
    row = next(row for row in ROWS if row.name == name)
    assert run_row(hub, client, row, STOCK, tmp_path).startswith("WRONG BYTES")


# After a 503 on an upload huggingface_hub waits a second, and the first push imports torch.
@pytest.mark.full
@pytest.mark.parametrize("row", cases(PUSH_ROWS, lambda row: False))
def test_push(hub: HubServer, client: Client, row: Any, tmp_path: Path) -> None:
    assert run_push_row(hub, client, row, CONVSTEM_PUSH, tmp_path) == row.expected


@pytest.mark.full
@pytest.mark.parametrize("row", cases([row for row in PUSH_ROWS if not row.create_pr], lambda row: False))
def test_publish(hub: HubServer, client: Client, row: Any, tmp_path: Path) -> None:
    assert run_push_row(hub, client, row, PUBLISH, tmp_path) == row.expected


@pytest.mark.full
def test_negative_control_the_stock_client_opens_two_pull_requests(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    row = next(row for row in PUSH_ROWS if row.create_pr and row.twice)
    assert "2 pull requests" in run_push_row(hub, client, row, STOCK_PUSH, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("call", CALLS)
def test_every_call_under_every_fault(hub: HubServer, client: Client, call: str, tmp_path: Path) -> None:
    put_models(hub, tmp_path)
    for row in CALL_ROWS:
        outcome = run_call(hub, client, row, call, tmp_path / "cache")
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        assert SILENT not in outcome, (row.name, outcome)
        assert RAW not in outcome or call in row.raw, (row.name, outcome)
