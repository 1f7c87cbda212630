"""Runs torchvision's own model tests on convstem's names; its tests come with Debian's source package.

Usage: python tests/conformance/torchvision_suite.py [pytest arguments]
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from torchvision_source import download

# Those that take the 224-pixel images of torchvision's tests and fit in a CI machine several times over.
SMALL = "vit_ti_16_convstem vit_s_16_convstem vit_s_32_convstem vitc_1gf vitc_4gf"


def main(arguments: list[str]) -> int:
    """Run the suite with pytest and return its exit status."""
    with tempfile.TemporaryDirectory() as temporary:
        suite = download(Path(temporary)) / "test"
        shutil.copy(Path(__file__).with_name("torchvision_conftest.py"), suite / "conftest.py")
        # Expected outputs exist for torchvision's own models only: ACCEPT records ours, then the other checks run.
        environment = {**os.environ, "CONVSTEM_SMALL_NAMES": SMALL, "EXPECTTEST_ACCEPT": "1", "OMP_NUM_THREADS": "1"}
        files = ["test_models.py", "test_extended_models.py"]
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-n", "2", "-W", "ignore", "--rootdir", ".", *files]
        return subprocess.run([*command, *arguments], cwd=suite, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
