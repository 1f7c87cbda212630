"""Runs timm's own ``tests/test_models.py`` on convstem's names: downloads the sdist, adds our conftest, runs pytest.

Usage: python tests/hosts/conformance/timm_suite.py [pytest arguments]
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

SMALL = "vit_nano4_convstem vit_ti16_convstem vit_s32_convstem vitc_1gf vit_conv_small vit_s16_cvst vit_m16_cvst"
"""One name of each kind, for tests on real tensors. Tests on the meta device take all names."""


def download(folder: Path) -> Path:
    """Download the sdist of the installed timm with pip and return its unpacked folder."""
    requirement = f"timm=={version('timm')}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "timm",
        requirement,
    ]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    with tarfile.open(next(folder.glob("timm-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.glob("timm-*") if path.is_dir())


def main(arguments: list[str]) -> int:
    """Run the suite with pytest and return its exit status."""
    with tempfile.TemporaryDirectory() as temporary:
        sdist = download(Path(temporary))
        suite = Path(temporary) / "suite"
        suite.mkdir()
        for source, name in (
            (sdist / "tests" / "test_models.py", "test_models.py"),
            (sdist / "pyproject.toml", "pyproject.toml"),  # its pytest markers
            (Path(__file__).with_name("timm_conftest.py"), "conftest.py"),
        ):
            (suite / name).write_bytes(source.read_bytes())
        environment = {**os.environ, "CONVSTEM_SMALL_NAMES": SMALL, "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-n",
            "2",
            "-o",
            "testpaths=.",
            "test_models.py",
        ]
        return subprocess.run([*command, *arguments], cwd=suite, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
