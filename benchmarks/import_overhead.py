"""What the autoload hook costs in ``import torch``, ``import timm`` and ``import torchvision``.

Fresh processes, paired: with the hook and with ``CONVSTEM_AUTOLOAD=0``, alternating. The registration time is taken
inside the process, where the noise of importing the host itself does not reach it.

    python -m benchmarks.import_overhead [--repeats 15]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version

PROBE = """
import json, sys, time
start = time.perf_counter(); import torch; torch_s = time.perf_counter() - start
spent = {}
sys.modules.pop("_convstem_autoload", None)  # torch has done all this once: do it again under the clock
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ConvStemFinder"]
start = time.perf_counter(); import _convstem_autoload as hook; hook.install()
spent["install"] = time.perf_counter() - start
real = hook.register
def timed(host, path):
    start = time.perf_counter(); real(host, path); spent[host] = time.perf_counter() - start
hook.register = timed
start = time.perf_counter(); import timm, torchvision; hosts_s = time.perf_counter() - start
print(json.dumps({"import torch": torch_s, "import timm, torchvision": hosts_s, **spent}))
"""


def measure(autoload: str) -> dict[str, float]:
    """Return the seconds one fresh process took, by what it did."""
    env = {**os.environ, "CONVSTEM_AUTOLOAD": autoload}
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Print a table of medians in milliseconds, and the paired differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    measure("1"), measure("0")  # warm the file cache
    pairs = [(measure("1"), measure("0")) for _ in range(repeats)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm")))
    print(f"median of {repeats} pairs, milliseconds\n")
    print(f"{'':<28}{'with':>9}{'without':>9}{'paired difference':>19}")
    for key in ("import torch", "import timm, torchvision"):
        on, off = ([pair[side][key] * 1e3 for pair in pairs] for side in (0, 1))
        difference = statistics.median(a - b for a, b in zip(on, off, strict=True))
        print(f"{key:<28}{statistics.median(on):>9.1f}{statistics.median(off):>9.1f}{difference:>19.1f}")
    print("\nspent inside the hook itself (no noise from the hosts)")
    for key, label in (
        ("install", "import and install the hook"),
        ("timm", "register with timm"),
        ("torchvision", "with torchvision"),
    ):
        print(f"{label:<28}{statistics.median(pair[0].get(key, 0) for pair in pairs) * 1e3:>9.2f}")


if __name__ == "__main__":
    main()
