# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""Publishing the registry: planned, resumable, with licences respected."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.support.hub_server import Client, Fault, HubServer
from tests.support.hub_server.client import environment
from tests.support.hub_server.fixtures import client, hub, server  # noqa: F401

NANO = "vit_nano4_convstem.cifar10"
TWENTY = [f"vit_nano4_convstem.copy{i:02}" for i in range(20)]

# A registry with 20 small entries: 20 tags of the embedded weights.
REGISTRY = f"""
import convstem, timm
from convstem.publishing import publish as publishing
from convstem.registry import catalog
from dataclasses import replace
nano = catalog.weights()["{NANO}"]
entries = {{name: replace(nano, name=name) for name in {TWENTY!r}}}
catalog.weights = lambda: entries
real = publishing.save_embedded
publishing.save_embedded = lambda entry, folder: real(nano, folder)
"""

pytestmark = pytest.mark.full


def publish(client: Client, options: str = "") -> Any:
    outcome = client(f"result = [row.to_json() for row in convstem.publish('org', {options})]")
    assert outcome.error is None, outcome.output
    return outcome.value


def actions(rows: Any) -> list[str]:
    return [row["action"] for row in rows]


def test_plan_publish_skip_and_repair(hub: HubServer, client: Client) -> None:
    client("import convstem")
    only = f"{NANO!r}"
    assert actions(publish(client, only + ", dry_run=True")) == ["publish"]
    assert hub.store.repos == {}
    assert actions(publish(client, only)) == ["published"]
    assert hub.store.names(f"org/{NANO}") == [
        ".eval_results/convstem.yaml",
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert f"hf-hub:org/{NANO}" not in hub.store.read(f"org/{NANO}", "README.md").decode()
    hub.log.clear()
    assert actions(publish(client, only)) == ["skip"]
    assert [method for _, method, *_ in hub.log if method not in ("GET", "HEAD")] == []
    hub.store.commit(f"org/{NANO}", "main", {}, delete=["README.md"])
    assert actions(publish(client, only)) == ["published"]
    assert hub.store.names(f"org/{NANO}") == [
        ".eval_results/convstem.yaml",
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_what_is_there_with_a_broken_config_is_published_again(hub: HubServer, client: Client) -> None:
    client("import convstem")
    publish(client, f"{NANO!r}")
    hub.store.commit(f"org/{NANO}", "main", {"config.json": b"{half"})
    assert actions(publish(client, f"{NANO!r}")) == ["published"]
    assert actions(publish(client, f"{NANO!r}")) == ["skip"]


def test_a_licence_that_forbids_it_is_refused_with_the_reason(hub: HubServer, client: Client) -> None:
    client("import convstem")
    (row,) = publish(client, "'*bamboo*'")
    assert row["action"] == "refuse"
    assert (
        row["detail"] == "the licence of the source (unknown) is unknown, and without one nothing may be redistributed"
    )
    assert hub.store.repos == {}
    assert "no weights match 'x*'" in client("convstem.publish('org', 'x*')").error


def test_a_transplant_is_published_with_its_base_model_and_measured_error(hub: HubServer, client: Client) -> None:
    name, source = "vit_ti16_convstem.augreg_in21k_ft_in1k", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    made = client("""
        import convstem, timm, torch, tempfile, pathlib
        from safetensors.torch import save_file
        torch.manual_seed(0)
        file = pathlib.Path(tempfile.mkdtemp(), "model.safetensors")
        save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), file)
        result = str(file)
    """)
    hub.store.create(source)
    with open(made.value, "rb") as file:
        hub.store.commit(source, "main", {"model.safetensors": file.read()})
    (row,) = publish(client, f"{name!r}")
    assert row["action"] == "published", row
    data = ModelCard(hub.store.read(f"org/{name}", "README.md").decode())
    assert (data.data.base_model, data.data.base_model_relation) == (source, "finetune")
    assert data.data.license == "apache-2.0"
    assert "Measured relative error of the features in float32, on probe images:" in data.text
    made = json.loads(hub.store.read(f"org/{name}", "config.json"))["convstem"]
    assert (made["source"], made["transform"]) == (source, "transplant")
    assert client(f"result = convstem.verify('org/{name}').ok").value is True
    assert actions(publish(client, f"{name!r}")) == ["skip"]
    client("from convstem.publishing import publish as publishing; publishing.ALGORITHM += 1")
    assert actions(publish(client, f"{name!r}, dry_run=True")) == ["publish"]


def test_one_failure_does_not_stop_the_others(hub: HubServer, client: Client) -> None:
    client(REGISTRY)
    hub.arm(Fault(origin="hub", method="POST", path="copy03/commit/", status=400, times=99))
    rows = publish(client, "'*copy0[0-4]'")
    assert actions(rows) == ["published"] * 3 + ["failed", "published"]
    hub.arm()
    assert actions(publish(client, "'*copy0[0-4]'")) == ["skip"] * 3 + ["published", "skip"]


def test_an_interrupted_publish_of_20_repositories_resumes(hub: HubServer, client: Client) -> None:
    client(REGISTRY)
    hub.arm(Fault(origin="hub", method="POST", path="copy07/commit/", wait=60))
    process = subprocess.Popen(
        [sys.executable, "-c", REGISTRY + "convstem.publish('org')"], env=environment(**hub.env, HF_TOKEN="writer")
    )
    while not any("copy07/commit/" in path for _, _, path, _ in hub.log):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    hub.arm()
    rows = publish(client)
    assert actions(rows) == ["skip"] * 7 + ["published"] * 13
    for name in TWENTY:
        assert hub.store.names(f"org/{name}") == [
            ".eval_results/convstem.yaml",
            "README.md",
            "config.json",
            "model.safetensors",
        ]
        assert len(hub.store.history(f"org/{name}")) == 1
    assert actions(publish(client)) == ["skip"] * 20
