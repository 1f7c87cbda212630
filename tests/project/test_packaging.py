"""The built wheel, the sdist and an editable install work outside the source tree."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.checkout import copy_checkout

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

USE = """
import timm, torchvision, torch
a = timm.create_model("vit_nano4_convstem", pretrained=True).eval()
b = torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT").eval()
x = torch.randn(1, 3, 32, 32)
assert (a(x) - b(x)).abs().max() < 1e-5
import convstem
print(convstem.__file__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder with the sdist and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    copy = copy_checkout(tmp_path_factory.mktemp("source") / "convstem")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(copy)], check=True, capture_output=True)
    return out, copy


def environment(folder: Path) -> Path:
    """Create a venv that sees this environment's torch, timm and torchvision, but not its convstem."""
    venv.create(folder, with_pip=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    shared = folder / "shared"
    shared.mkdir()
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if "convstem" not in item.name and not item.name.startswith(("pip", "setuptools", "__pycache__")):
            (shared / item.name).symlink_to(item)
    (site / "shared.pth").write_text(str(shared))
    return folder / "bin" / "python"


def pip_install(python: Path, *what: str | Path) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *map(str, what)]
    subprocess.run(command, check=True, cwd=python.parent)


def use(python: Path, code: str = USE) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-W", "error::RuntimeWarning", "-c", code],
        cwd=python.parent,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_built_package_works_outside_the_source_tree(built: tuple[Path, Path], tmp_path: Path, pattern: str) -> None:
    python = environment(tmp_path / "env")
    pip_install(python, next(built[0].glob(pattern)))
    assert str(tmp_path) in use(python)
    shown = subprocess.run(
        [str(python), "-m", "convstem", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "largest logit difference" in shown.stdout
    assert (tmp_path / "demo_output" / "predictions.png").stat().st_size > 10_000


MEGABYTE = 1_000_000
WHEEL = {"_convstem_autoload.py", "convstem"}
SDIST = {".ci", "benchmarks", "docs", "experiments", "hub_cards", "recipes", "registry", "src", "tests", "tools"}
"""Folders. The top-level files are the repository's and PKG-INFO."""


def test_contents_and_size(built: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(next(built[0].glob("*.whl"))).namelist()
    assert {name.partition("/")[0] for name in wheel if ".dist-info" not in name} == WHEEL
    assert not [name for name in wheel if "__pycache__" in name or "/tests/" in name]
    for name in ("convstem/data/registry/architectures.json", "convstem/py.typed", "_convstem_autoload.py"):
        assert name in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    with tarfile.open(next(built[0].glob("*.tar.gz"))) as archive:
        sdist = archive.getnames()
    for name in ("registry/weights.json", "tests/conftest.py", "README.md", "src/_convstem_autoload.py"):
        assert any(member.endswith("/" + name) for member in sdist), name
    assert {parts[1] for name in sdist if len(parts := name.split("/")) > 2} == SDIST
    assert not [name for name in sdist if "__pycache__" in name]
    sizes = {path.suffix: path.stat().st_size for path in built[0].iterdir()}
    assert sizes.keys() == {".whl", ".gz"}
    assert max(sizes.values()) < 6 * MEGABYTE, sizes


def test_editable_install_survives_a_moved_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    copy = tmp_path / "checkout"
    shutil.copytree(built[1], copy)
    pip_install(python, "--editable", copy)
    assert str(copy) in use(python)
    copy.rename(tmp_path / "moved")
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, timm, torchvision
said = [w for w in caught if "convstem could not register its models" in str(w.message)]
assert len(said) == 1, caught
timm.create_model("vit_tiny_patch16_224", depth=1)
print("ok")
"""
    assert use(python, code) == "ok"
