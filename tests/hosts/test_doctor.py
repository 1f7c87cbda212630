"""The report of `convstem doctor` for a given answer of its fresh process."""

import json
import subprocess
import warnings
from typing import Any

import pytest

from convstem.hosts import describe
from convstem.hosts.registration import EXPLICIT, Registration, _tell_refused

RECORD: dict[str, Any] = {"host": "timm", "path": "torch autoload", "names": ["a"], "refused": {}, "error": None}
BOTH = {"timm": RECORD, "torchvision": {**RECORD, "host": "torchvision"}}


def answer(monkeypatch: pytest.MonkeyPatch, hosts: Any, code: int = 0) -> None:
    """Fake the answer of the process that doctor starts; the switches are off."""
    done = subprocess.CompletedProcess(
        [], code, json.dumps({"hosts": hosts, "warnings": ["a warning"]}), "one\nno torch\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    for name in describe._SWITCHES:
        monkeypatch.delenv(name, raising=False)


def test_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, BOTH)
    report = describe.examine()
    assert report["ok"] is True and report["advice"] == ""
    assert (report["hosts"], report["warnings"]) == (BOTH, ["a warning"])


@pytest.mark.parametrize("hosts", [{"timm": RECORD}, {**BOTH, "timm": {**RECORD, "error": "it broke"}}, {}])
def test_a_host_without_names_is_not_well(monkeypatch: pytest.MonkeyPatch, hosts: Any) -> None:
    answer(monkeypatch, hosts)
    monkeypatch.setenv("CONVSTEM_AUTOLOAD", "0")
    report = describe.examine()
    assert report["ok"] is False
    assert report["advice"].startswith("autoload is switched off by CONVSTEM_AUTOLOAD=0: unset it")


def test_imports_that_fail_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, BOTH, code=1)
    report = describe.examine()
    assert report["hosts"] == {} and report["ok"] is False
    assert report["warnings"] == ["importing torch, timm and torchvision failed: no torch"]


def test_a_refused_name_is_an_error_only_where_somebody_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="vit_x"):
            _tell_refused(Registration("timm", EXPLICIT, refused={"vit_x": "it is taken"}))
        assert capsys.readouterr().err == ""
        _tell_refused(Registration("timm", "torch autoload", refused={"vit_x": "it is taken"}))
    assert "vit_x" in capsys.readouterr().err
