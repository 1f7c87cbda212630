"""Every call that reads a model from the Hub, under every fault of its two files, and its outcome in one word."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.client import Outcome
from tests.support.hub_server.faults import Fault

CALLS = {
    "transplant": "model = convstem.transplant('hf-hub:org/patchify')",
    "create_model": "model = timm.create_model('hf-hub:org/ours', pretrained=True)",
    "load": "model = convstem.load('org/ours')",
    "pull": "from safetensors.torch import load_file\n"
    "model = load_file(convstem.pull('org/ours') / 'model.safetensors')",
}

SUM = "\nstate = model if isinstance(model, dict) else model.state_dict()\n"
SUM += "result = sum(float(state[key].double().sum()) for key in ('head.weight', 'norm.bias', 'cls_token'))"

RIGHT, HEALED, CLEAR, RAW, SILENT = "right", "healed", "clear error", "RAW ERROR", "SILENT"

CONFIG: dict[str, Any] = {"origin": "hub", "method": "GET", "path": "config.json"}
HEAD: dict[str, Any] = {"origin": "hub", "method": "HEAD", "path": "/resolve/"}
API: dict[str, Any] = {"origin": "hub", "method": "GET", "path": "/api/models/"}
FOREIGN: dict[str, Any] = {"replace": (("X-Repo-Commit", "f" * 40),)}
IN_CACHE, WEIGHTS, CONFIG_NAME = "*/snapshots/*/", "model.safetensors", "config.json"


@dataclass(frozen=True)
class CallRow:
    """One fault: of the server, or of the cache after a first call."""

    name: str
    faults: tuple[dict[str, Any], ...] = ()
    spoil: dict[str, Callable[[Path], Any]] = field(default_factory=dict)
    """Pattern of files in the cache -> how to damage them after a call without faults."""
    raw: tuple[str, ...] = ()
    """Calls that fail with timm's own error, in its request for the config before convstem is called."""


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.resolve().write_bytes(content)


def no_text(path: Path) -> None:
    path.resolve().write_bytes(b"\xff")


def other_numbers(path: Path) -> None:
    path.resolve().write_bytes(path.read_bytes().replace(b"0.4", b"0.7"))


BY_TIMM = ("create_model",)
"""timm requests the config itself, before it calls convstem, so the error is timm's own."""

CALL_ROWS = (
    CallRow("nothing (control)"),
    CallRow("weights: one byte flipped", ({"flip": -2000},)),
    CallRow("weights: one byte flipped, always", ({"flip": -2000, "times": 99},)),
    CallRow("weights: cut short", ({"truncate": 1000},)),
    CallRow("weights: connection reset", ({"reset": 100_000},)),
    CallRow("weights: hang-up half-way", ({"drop": 100_000},)),
    CallRow("weights: 500", ({"status": 500},)),
    CallRow("config: one byte flipped", ({**CONFIG, "flip": 3},), raw=BY_TIMM),
    CallRow("config: one byte flipped, always", ({**CONFIG, "flip": 3, "times": 99},), raw=BY_TIMM),
    CallRow("config: cut short", ({**CONFIG, "truncate": 50},), raw=BY_TIMM),
    CallRow("config: hang-up", ({**CONFIG, "drop": 10},), raw=BY_TIMM),
    CallRow("config: 500", ({**CONFIG, "status": 500},), raw=BY_TIMM),
    CallRow("config: another commit's header", ({**CONFIG, "method": "HEAD", **FOREIGN}, {**CONFIG, **FOREIGN})),
    CallRow("503 on HEAD and on the API", ({**HEAD, "status": 503}, {**API, "status": 503})),
    CallRow("403 everywhere", ({**HEAD, "status": 403, "times": 99}, {**API, "status": 403, "times": 99}), raw=BY_TIMM),
    CallRow("cache: weights damaged", spoil={IN_CACHE + WEIGHTS: flip}),
    CallRow("cache: weights cut short", spoil={IN_CACHE + WEIGHTS: lambda path: path.resolve().write_bytes(b"short")}),
    CallRow("cache: weights gone", spoil={IN_CACHE + WEIGHTS: lambda path: path.resolve().unlink()}),
    CallRow("cache: config no text", spoil={IN_CACHE + CONFIG_NAME: no_text}, raw=BY_TIMM),
    CallRow("cache: config of other numbers", spoil={IN_CACHE + CONFIG_NAME: other_numbers}),
)


def put_models(hub: HubServer, folder: Path) -> None:
    """Commit one of our models and a patchify model."""
    import timm

    import convstem

    convstem.pull("vit_nano4_convstem.cifar10", out=folder / "ours")
    patchify = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3)
    patchify.pretrained_cfg["mean"] = patchify.default_cfg["mean"] = (0.4, 0.4, 0.4)
    timm.models.save_for_hf(patchify, folder / "patchify", safe_serialization=True)
    for name in ("ours", "patchify"):
        hub.store.repos.pop(f"org/{name}", None)
        hub.store.create(f"org/{name}")
        hub.store.commit(f"org/{name}", "main", {path.name: path.read_bytes() for path in (folder / name).iterdir()})


def run_call(hub: HubServer, client: Client, row: CallRow, call: str, cache: Path) -> str:
    """Run one call under one fault, with an empty cache, and return its outcome in words."""
    hub.arm()
    code = CALLS[call] + SUM
    client(f"import convstem, timm, huggingface_hub.constants as c\nc.HF_HUB_CACHE = {str(cache)!r}")
    right = client(code)
    assert right.error is None, right.output
    for pattern, spoil in row.spoil.items():
        for path in cache.glob(pattern):
            spoil(path)
    if not row.spoil:
        shutil.rmtree(cache)
    hub.arm(*(Fault(**fault) for fault in row.faults))
    outcome = client(code)
    hub.arm()
    word = judge(outcome, right, bool(row.spoil))
    if outcome.error is None:
        return word
    again = judge(client(code), right, False)
    return f"{word} ({outcome.kind}), then {again}: {' '.join(outcome.error.split())[:110]}"


def judge(outcome: Outcome, right: Outcome, spoilt: bool) -> str:
    """Return one word for an outcome."""
    from convstem import errors

    if outcome.error is not None:
        ours = getattr(errors, str(outcome.kind), None)
        return CLEAR if isinstance(ours, type) and issubclass(ours, errors.ConvStemError) else RAW
    if json.dumps(outcome.value) != json.dumps(right.value):
        return SILENT
    return HEALED if spoilt else RIGHT
