"""The output of `convstem doctor`. The real command runs with --full."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from convstem.cli.main import main
from convstem.hosts import describe

RECORD: dict[str, Any] = {"host": "timm", "path": "torch autoload", "names": ["a"], "refused": {}, "error": None}
REPORT = {
    "python": "3.99", "packages": {"timm": "1.0", "torch": None}, "warnings": ["a warning"], "entry_point": "a:b",
    "switches": {"CONVSTEM_AUTOLOAD": None, "OTHER": "0"}, "hosts": {"timm": RECORD}, "ok": False, "advice": "do it",
}  # fmt: skip


def doctor(monkeypatch: pytest.MonkeyPatch, *options: str, **changes: Any) -> tuple[int, str]:
    monkeypatch.setattr(describe, "examine", lambda: {**REPORT, **changes})
    done = CliRunner().invoke(main, ["doctor", *options])
    return done.exit_code, done.output


def test_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    status, said = doctor(monkeypatch)
    versions, entry_point, switches, timm, torchvision, warning, advice = said.splitlines()
    assert status == 1
    assert versions == "python 3.99, timm 1.0, torch not installed"
    assert (entry_point, switches) == ("entry point: a:b", "switches: CONVSTEM_AUTOLOAD=unset, OTHER=0")
    assert timm.startswith("timm: ") and "torch autoload" in timm
    assert torchvision == "torchvision: nothing registered"
    assert (warning, advice) == ("warning: a warning", "advice: do it")


def test_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    status, said = doctor(monkeypatch, ok=True, entry_point=None)
    assert status == 0
    assert "\nentry point: missing\n" in said and said.endswith("\nall names resolve without an import\n")


def test_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    status, said = doctor(monkeypatch, "--json")
    assert (status, json.loads(said)) == (1, REPORT)
