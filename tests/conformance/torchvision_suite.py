"""Runs torchvision's own model tests on convstem's names; its tests come with Debian's source package.

Usage: python tests/conformance/torchvision_suite.py [pytest arguments]
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# Those that take the 224-pixel images of torchvision's tests and fit in a CI machine several times over.
SMALL = "vit_ti_16_convstem vit_s_16_convstem vit_s_32_convstem vitc_1gf vitc_4gf"


def download(folder: Path) -> Path:
    """Download the original tarball with apt, from the configured archives, and return the folder with the tests."""
    parts, lists = folder / "parts", folder / "lists"
    parts.mkdir()
    (lists / "partial").mkdir(parents=True)
    for source in Path("/etc/apt/sources.list.d").glob("*.sources"):
        (parts / source.name).write_text(source.read_text().replace("Types: deb\n", "Types: deb-src\n"))
    options = ["-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={parts}", "-o"]
    apt = ["apt-get", "-qq", *options, f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User=root"]
    subprocess.run([*apt, "update"], check=True, cwd=folder)
    subprocess.run([*apt, "--download-only", "--tar-only", "source", "pytorch-vision"], check=True, cwd=folder)
    with tarfile.open(next(folder.glob("pytorch-vision_*.orig.tar.*"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("vision-*")) / "test"


def main(arguments: list[str]) -> int:
    """Run the suite with pytest and return its exit status."""
    with tempfile.TemporaryDirectory() as temporary:
        suite = download(Path(temporary))
        shutil.copy(Path(__file__).with_name("torchvision_conftest.py"), suite / "conftest.py")
        # Expected outputs exist for torchvision's own models only: ACCEPT records ours, then the other checks run.
        environment = {**os.environ, "CONVSTEM_SMALL_NAMES": SMALL, "EXPECTTEST_ACCEPT": "1", "OMP_NUM_THREADS": "1"}
        files = ["test_models.py", "test_extended_models.py"]
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-n", "2", "-W", "ignore", "--rootdir", ".", *files]
        return subprocess.run([*command, *arguments], cwd=suite, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
