"""timm's own test suite on our names."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

SUITE = Path(__file__).parent / "conformance" / "timm_suite.py"

# Each must have run on our names; those marked True select by module or by a literal list and would skip a plugin.
MUST_RUN = {
    "test_model_forward": False,
    "test_model_backward": False,
    "test_model_default_cfgs_non_std": True,
    "test_model_load_pretrained": False,
    "test_model_forward_torchscript": False,
    "test_model_forward_features": False,
    "test_model_forward_intermediates_features": True,
    "test_model_forward_intermediates": True,
    "test_prune_intermediate_layers_contract": True,
    "test_model_forward_fx": False,
    "test_model_backward_fx": False,
    "test_model_forward_fx_torchscript": False,
}


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_timms_own_suite_passes_on_our_names(tmp_path):
    report = tmp_path / "report.xml"
    status = subprocess.run([sys.executable, str(SUITE), f"--junit-xml={report}"], check=False).returncode
    cases = list(ET.parse(report).iter("testcase"))
    ran = Counter(c.get("name").split("[")[0] for c in cases if c.find("skipped") is None)
    skipped = [f"{c.get('name')}: {c.find('skipped').get('message')}" for c in cases if c.find("skipped") is not None]
    print(f"\ntimm's suite on convstem's names: {sum(ran.values())} ran, {len(skipped)} skipped")
    print("\n".join([*(f"  {count:>3} {name}" for name, count in sorted(ran.items())), *skipped]))
    assert status == 0
    assert not [name for name in MUST_RUN if not ran[name]], "these tests never saw our names"
