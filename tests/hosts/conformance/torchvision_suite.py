"""Runs torchvision's own model tests, from Debian's source package, on convstem's names.

Usage: python tests/hosts/conformance/torchvision_suite.py [pytest arguments]
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from torchvision_source import download

# Names that take the tests' 224-pixel images and fit several times into a CI machine's memory.
SMALL = "vit_ti_16_convstem vit_s_16_convstem vit_s_32_convstem vitc_1gf vitc_4gf"


def main(arguments: list[str]) -> int:
    """Run the suite with pytest and return its exit status."""
    with tempfile.TemporaryDirectory() as temporary:
        suite = download(Path(temporary)) / "test"
        shutil.copy(Path(__file__).with_name("torchvision_conftest.py"), suite / "conftest.py")
        # Only torchvision's own models have expected outputs. ACCEPT records ours so that the other checks run.
        environment = {**os.environ, "CONVSTEM_SMALL_NAMES": SMALL, "EXPECTTEST_ACCEPT": "1", "OMP_NUM_THREADS": "1"}
        files = ["test_models.py", "test_extended_models.py"]
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-n", "2", "-W", "ignore", "--rootdir", ".", *files]
        return subprocess.run([*command, *arguments], cwd=suite, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
