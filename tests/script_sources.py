"""Where the hosts' training scripts come from: a clone that the environment names, or Debian's source package."""

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest


def copy_scripts(source, target):
    """Copy the scripts alone, so that they import the installed package and not the one beside them."""
    target.mkdir()
    for path in source.glob("*.py"):
        shutil.copy(path, target)
    return target


def find_timm_scripts():
    """Return the folder of timm's scripts, or skip: they are in timm's repository only, not in its sdist."""
    folder = os.environ.get("CONVSTEM_TIMM_SCRIPTS")
    if folder is None:
        pytest.skip("CONVSTEM_TIMM_SCRIPTS is not set: no package has timm's scripts; point it at a clone of timm")
    assert (Path(folder) / "train.py").is_file(), f"CONVSTEM_TIMM_SCRIPTS={folder} has no train.py"
    return Path(folder)


def find_torchvision_scripts(folder):
    """Return the folder of torchvision's classification scripts: a clone's, or Debian's source package's."""
    given = os.environ.get("CONVSTEM_TORCHVISION_SCRIPTS")
    if given is not None:
        assert (Path(given) / "presets.py").is_file(), f"CONVSTEM_TORCHVISION_SCRIPTS={given} has no presets.py"
        return Path(given)
    if shutil.which("apt-get") is None:
        pytest.skip("torchvision's scripts come with Debian's source package; there is no apt-get here")
    return download_torchvision(folder) / "references" / "classification"


def download_torchvision(folder, suite="trixie"):
    """Download a Debian release's source of torchvision from the configured mirror, and return its folder."""
    parts, lists = folder / "parts", folder / "lists"
    parts.mkdir()
    (lists / "partial").mkdir(parents=True)
    for source in Path("/etc/apt/sources.list.d").glob("*.sources"):
        stanzas = [part for part in source.read_text().split("\n\n") if "-security" not in part]
        text = re.sub(r"(?m)^Suites:.*$", f"Suites: {suite}", "\n\n".join(stanzas))
        (parts / source.name).write_text(re.sub(r"(?m)^Types:.*$", "Types: deb-src", text))
    options = ["-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={parts}", "-o"]
    apt = ["apt-get", "-qq", *options, f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User=root"]
    subprocess.run([*apt, "update"], check=True, cwd=folder)
    subprocess.run([*apt, "--download-only", "--tar-only", "source", "pytorch-vision"], check=True, cwd=folder)
    with tarfile.open(next(folder.glob("pytorch-vision_*.orig.tar.*"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("vision-*"))
