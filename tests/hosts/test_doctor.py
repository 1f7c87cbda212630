"""The report of `convstem doctor` for a given answer of its fresh process."""

import json
import subprocess
import warnings
from typing import Any

import pytest

import _convstem_autoload as autoload
from convstem.hosts import describe, registration
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


def test_an_entry_point_that_is_missing_is_the_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, {})
    monkeypatch.setattr(describe, "_version", lambda package: "1")
    monkeypatch.setattr(describe, "entry_points", lambda **_: [])
    assert describe.examine()["advice"].startswith("the torch.backends entry point is missing: install convstem with")


def test_a_registration_that_fails_leaves_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(done: Registration) -> None:
        done.names.append("vit_x")
        raise ValueError("broken")

    monkeypatch.setattr(registration, "REGISTRATIONS", {})
    monkeypatch.setitem(registration._REGISTER, "timm", half)
    with pytest.raises(ValueError, match="broken"):
        registration.register_host("timm", EXPLICIT)
    done = registration.REGISTRATIONS["timm"]
    assert (list(done.names), done.error) == ([], "ValueError: broken")


def test_registering_again_imports_both_hosts_and_says_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("importlib.import_module", lambda name: asked.append(name))
    monkeypatch.setattr(registration, "register_host", lambda host, path: asked.append((host, path)))
    registration.register()
    assert asked == ["timm.models", ("timm", EXPLICIT), "torchvision.models", ("torchvision", EXPLICIT)]


def test_a_failure_is_said_once_where_warnings_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            autoload.report(ValueError("of this test"))
    assert capsys.readouterr().err.count("could not register its models (ValueError: of this test)") == 1
