"""Finds the hosts' training scripts: in a clone named by the environment, or in Debian's source package."""

import os
import shutil
from pathlib import Path

import pytest

from tests.hosts.conformance.torchvision_source import download


def copy_scripts(source: Path, target: Path) -> Path:
    """Copy only the scripts, so that they import the installed package instead of the one beside them."""
    target.mkdir()
    for path in source.glob("*.py"):
        shutil.copy(path, target)
    return target


def find_timm_scripts() -> Path:
    """Return the folder of timm's scripts, or skip: they are only in timm's repository, not in its sdist."""
    folder = os.environ.get("CONVSTEM_TIMM_SCRIPTS")
    if folder is None:
        pytest.skip("CONVSTEM_TIMM_SCRIPTS is not set: no package has timm's scripts; point it at a clone of timm")
    assert (Path(folder) / "train.py").is_file(), f"CONVSTEM_TIMM_SCRIPTS={folder} has no train.py"
    return Path(folder)


def find_torchvision_scripts(folder: Path) -> Path:
    """Return the folder of torchvision's classification scripts, from a clone or Debian's source package."""
    given = os.environ.get("CONVSTEM_TORCHVISION_SCRIPTS")
    if given is not None:
        assert (Path(given) / "presets.py").is_file(), f"CONVSTEM_TORCHVISION_SCRIPTS={given} has no presets.py"
        return Path(given)
    if shutil.which("apt-get") is None:
        pytest.skip("torchvision's scripts come with Debian's source package; there is no apt-get here")
    return download(folder) / "references" / "classification"
