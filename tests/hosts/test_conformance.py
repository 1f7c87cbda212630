"""The hosts' own test suites on our names."""

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

SUITES = Path(__file__).parent / "conformance"
pytestmark = [pytest.mark.full, pytest.mark.timeout(3000)]

# Each must run on our names. Some select by module name or by a literal list and could silently skip a plugin.
# (test_model_forward_features needs spatial feature maps; timm excludes all its ViTs.)
TIMM = (
    "test_model_forward",
    "test_model_backward",
    "test_model_default_cfgs_non_std",
    "test_model_load_pretrained",
    "test_model_forward_torchscript",
    "test_model_forward_intermediates_features",
    "test_model_forward_intermediates",
    "test_prune_intermediate_layers_contract",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_model_forward_fx_torchscript",
)
TORCHVISION = ("test_classification_model", "test_list_models", "test_list_models_filters", "test_naming_conventions")

PATCHES = {
    "timm_suite.py": {
        "timm.list_models": "timm's file asks it for names by patterns and module names that know timm's models only, "
        "and would skip ours silently",
    },
    "torchvision_suite.py": {
        "EXPECTTEST_ACCEPT": "torchvision's expected outputs are files, of its own models only: ours are recorded "
        "first, so that the other checks of the same tests run",
    },
}
"""Differences from how the host's developers run their tests, with reasons. Selecting tests is no patch."""


def run_suite(script: str, report: Path, must_run: tuple[str, ...]) -> None:
    """Run a suite, print the tests that ran or were skipped, and require that ``must_run`` ran on our names."""
    command = [sys.executable, str(SUITES / script), f"--junit-xml={report}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert report.is_file(), done.stdout + done.stderr
    cases = list(ET.parse(report).iter("testcase"))
    skips = [(c.get("name"), c.find("skipped").get("message")) for c in cases if c.find("skipped") is not None]
    skipped = {name for name, _ in skips}
    ran = Counter(c.get("name").split("[")[0] for c in cases if c.get("name") not in skipped)
    print(f"\n{script} on convstem's names: {sum(ran.values())} ran, {len(skips)} skipped")
    print("\n".join(f"  patched {name}: {reason}" for name, reason in PATCHES[script].items()))
    print("\n".join(f"  {count:>3} {name}" for name, count in sorted(ran.items())))
    print("\n".join(f"  skipped {name}: {reason}" for name, reason in skips))
    assert done.returncode == 0, done.stdout[-8000:]
    assert not [name for name in must_run if not ran[name]], "these tests never saw our names"


@pytest.mark.parametrize("script", PATCHES)
def test_every_patch_has_its_reason(script: str) -> None:
    """A patch is one of the host's names set by the conftest, or a switch of its tests in the suite's environment."""
    conftest = (SUITES / script.replace("suite", "conftest")).read_text(encoding="utf-8")
    suite = (SUITES / script).read_text(encoding="utf-8")
    patched = re.findall(
        r"(?m)^\s*((?:timm|torchvision|models)\b[\w.]*) =|(?:monkeypatch\.)?setattr\(([^,]+),", conftest
    )
    switches = set(re.findall(r'"([A-Z_]+)":', suite)) - {"CONVSTEM_SMALL_NAMES", "OMP_NUM_THREADS"}
    assert {"".join(found) for found in patched} | switches == set(PATCHES[script])


def test_timms_own_suite_passes_on_our_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        run_suite("timm_suite.py", tmp_path / "report.xml", TIMM)


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="torchvision's tests come with Debian's source package")
def test_torchvisions_own_suite_passes_on_our_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        run_suite("torchvision_suite.py", tmp_path / "report.xml", TORCHVISION)
