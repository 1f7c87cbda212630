"""The parts of a release agree: versions, floors, CI's environments and the counting of skips."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import convstem
from tests.support.checkout import ROOT
from tools import environments, skips

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (stated,) = re.findall(r'^version = "(.*)"', PYPROJECT, re.M)
    assert {stated, str(citation["version"])} == {convstem.__version__}


def test_every_dependency_has_a_floor_and_its_reason() -> None:
    pins = environments.floors(PYPROJECT)
    assert len(pins) >= 9
    assert len(re.findall(r'^    "[\w.-]+>=[\w.]+", +# \S', PYPROJECT, re.M)) >= len(pins)


def test_a_dependency_without_a_floor_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected NAME>=VERSION; got numpy, torch<3$"):
        environments.floors('dependencies = [\n    "numpy",\n    "timm>=1.0",  # because\n    "torch<3",\n]\n')


def test_a_python_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    absent = environments.Environment("python9.99", "none has it")
    monkeypatch.setattr(environments, "HOME", tmp_path / "environments")
    monkeypatch.setattr(environments, "ENVIRONMENTS", {"future": absent})
    assert environments.main(["future"]) == 0
    said = "environment future: not run: there is no python9.99 here\n"
    assert (capsys.readouterr().out, (tmp_path / "environments" / "results.txt").read_text()) == (said, said)
    with pytest.raises(SystemExit, match="unknown environment past; there are future"):
        environments.main(["past"])


def test_an_environment_that_fails_fails_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(environments, "HOME", tmp_path)
    monkeypatch.setattr(environments, "test", {"floors": "passed", "newest": "FAILED"}.__getitem__)
    assert (environments.main(["floors"]), environments.main(["floors", "newest"])) == (0, 1)
    assert "environment newest: FAILED" in capsys.readouterr().out
    assert re.search(r"tools\.environments floors newest \|\| failed=1.*^exit \$failed$", CI, re.M | re.S)


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One environment for this interpreter, installed by making its folder; the tests of `sound` pass."""

    def install(name: str, python: str) -> Path:
        (tmp_path / name).mkdir()
        return Path(shutil.which("true" if name == "sound" else "false") or "")

    here = environments.Environment(sys.executable, "this one")
    monkeypatch.setattr(environments, "HOME", tmp_path)
    monkeypatch.setattr(environments, "ENVIRONMENTS", {"broken": here, "sound": here})
    monkeypatch.setattr(environments, "install", install)
    return tmp_path


def test_an_environment_goes_when_its_tests_have_passed(one: Path) -> None:
    assert environments.main(["sound", "broken"]) == 1
    assert (one / "results.txt").read_text() == "environment sound: passed\nenvironment broken: FAILED\n"
    assert [path.name for path in one.iterdir() if path.is_dir()] == ["broken"]


@pytest.mark.parametrize("fault", ["disk", "pip"])
def test_an_environment_that_cannot_be_made_says_why(one: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "disk":
        usage = shutil.disk_usage(one)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 * 10**9))
    else:
        monkeypatch.setattr(environments, "install", lambda *_: subprocess.run(["false"], check=True))
    assert environments.main(["sound"]) == 1
    said = f"needs {environments.ROOM} GB of free disk, and there are 3.0"
    said = said if fault == "disk" else "could not be installed, false returned 1"
    assert (one / "results.txt").read_text() == f"environment sound: FAILED: {said}\n"


def test_the_pythons_of_ci_are_those_that_are_promised() -> None:
    promised = set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT))
    tested = {environment.python.removeprefix("python") for environment in environments.ENVIRONMENTS.values()}
    (least,) = re.findall(r'^requires-python = ">=(.*)"', PYPROJECT, re.M)
    assert least in promised
    assert {"3.10", "3.13"} <= promised & tested


def test_skips_are_counted_by_reason(tmp_path: Path, capsys: Any) -> None:
    case = "<testcase><skipped message='{}'/></testcase>"
    cases = "".join([*map(case.format, ["slow", "slow", "no make"]), "<testcase/>"])
    (tmp_path / "full.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    skips.main([str(tmp_path / "full.xml")])
    assert capsys.readouterr().out == "full: 3 tests skipped\n  2 x slow\n  1 x no make\n"
