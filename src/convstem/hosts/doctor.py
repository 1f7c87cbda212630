"""Finds out, in a fresh process, how our names reach timm and torchvision on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

_SWITCHES = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "CONVSTEM_AUTOLOAD")

_PACKAGES = ("convstem", "torch", "torchvision", "timm", "huggingface_hub", "safetensors")

# Runs without importing convstem: only what torch's autoload did on its own may show up.
_PROBE = """
import dataclasses, json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, timm.models, torchvision.models
register = sys.modules.get("convstem.hosts.registration")
records = {host: dataclasses.asdict(r) for host, r in register.REGISTRATIONS.items()} if register else {}
said = [str(w.message) for w in caught if "convstem" in str(w.message)]
print(json.dumps({"hosts": records, "warnings": said}))
"""


def examine() -> dict[str, Any]:
    """Return versions, switches, the entry point, and what was registered with each host in a fresh process.

    The key ``ok`` is true when both hosts got all names that were not refused, without an import.
    """
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
        "switches": {name: os.environ.get(name) for name in _SWITCHES},
        "entry_point": next((e.value for e in entry_points(group="torch.backends") if e.name == "convstem"), None),
    }
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        report |= {"hosts": {}, "warnings": [f"importing torch, timm and torchvision failed: {last}"]}
    else:
        report |= json.loads(probe.stdout.strip().splitlines()[-1])
    report["ok"] = len(report["hosts"]) == 2 and not any(host["error"] for host in report["hosts"].values())
    report["advice"] = "" if report["ok"] else _advice(report)
    return report


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _advice(report: dict[str, Any]) -> str:
    if missing := [name for name, found in report["packages"].items() if found is None and name != "convstem"]:
        return f"{', '.join(missing)} not installed: pip install {' '.join(missing)}"
    off = [f"{name}=0" for name in _SWITCHES if report["switches"][name] == "0"]
    if off:
        return (
            f"autoload is switched off by {' and '.join(off)}: unset it, `import convstem` in your script, pass "
            "`--device-modules convstem` to timm's train.py, or use `convstem run SCRIPT`"
        )
    if report["entry_point"] is None:
        return "the torch.backends entry point is missing: install convstem with pip (a bare PYTHONPATH has none)"
    return "see the warnings above; reinstall convstem, and set CONVSTEM_AUTOLOAD=0 to switch it off meanwhile"
