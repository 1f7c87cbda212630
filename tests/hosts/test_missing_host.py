"""Without timm, torchvision's names work, and errors name timm where it is needed. (timm requires torchvision.)"""

import pytest

from convstem.hosts import describe as doctor
from tests.support.processes import python

WITHOUT_TIMM = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "timm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
"""


@pytest.mark.full
def test_torchvisions_half_works_without_timm_and_what_needs_it_names_it() -> None:
    code = """
import torch, torchvision
model = torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT").eval()
print(tuple(model(torch.zeros(1, 3, 32, 32)).shape))
import convstem
convstem.load("vit_nano4_convstem")
"""
    done = python(WITHOUT_TIMM + code, check=False)
    assert done.stdout == "(1, 10)\n"
    assert "ModuleNotFoundError: No module named 'timm'" in done.stderr  # negative control, too


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "timm" else "1.0")
    report = {"packages": {name: doctor._version(name) for name in doctor._PACKAGES}, "switches": {}}
    assert doctor._advice(report) == "timm not installed: pip install timm"
