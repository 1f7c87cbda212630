"""What the autoload hook costs in ``import torch``, ``import timm`` and ``import torchvision``.

Pairs of fresh processes, with the hook and with ``CONVSTEM_AUTOLOAD=0``, alternate. Registration is timed inside the
process, imports included, without the noise of importing the host. Bytecode is cached, as in an installed package.

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
from typing import Any

PROBE = """
import json, sys, time
start = time.perf_counter(); import torch; torch_s = time.perf_counter() - start
spent = {}
sys.modules.pop("_convstem_autoload", None)  # torch has done all this once: do it again under the clock
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ConvStemFinder"]
def clock(): return time.perf_counter(), time.process_time()
def since(start): return [now - then for now, then in zip(clock(), start)]
start = clock(); import _convstem_autoload as hook; hook.install()
spent["install"] = since(start)
real = hook.register
def timed(host, path):
    start = clock(); real(host, path); spent[host] = since(start)
hook.register = timed
start = time.perf_counter(); import timm, torchvision; hosts_s = time.perf_counter() - start
registration = sys.modules.get("convstem.hosts.registration")
names = {host: len(done.names) for host, done in registration.REGISTRATIONS.items()} if registration else {}
print(json.dumps({"import torch": torch_s, "import timm, torchvision": hosts_s, "spent": spent, "names": names}))
"""

STEPS = (("install", "import and install the hook"), ("torchvision", "torchvision, first"), ("timm", "timm, second"))
"""timm imports torchvision, so torchvision registers first and pays for shared imports."""


def measure(autoload: str) -> dict[str, Any]:
    """Return the seconds of each step in one fresh process."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["CONVSTEM_AUTOLOAD"] = autoload
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Print a table of medians in milliseconds, and the paired differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    measure("1"), measure("0")  # warm the file cache, write the bytecode
    pairs = [(measure("1"), measure("0")) for _ in range(repeats)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm")))
    print(f"median of {repeats} pairs, milliseconds\n")
    print(f"{'':<28}{'with':>9}{'without':>9}{'paired difference':>19}")
    for key in ("import torch", "import timm, torchvision"):
        on, off = ([pair[side][key] * 1e3 for pair in pairs] for side in (0, 1))
        difference = statistics.median(a - b for a, b in zip(on, off, strict=True))
        print(f"{key:<28}{statistics.median(on):>9.1f}{statistics.median(off):>9.1f}{difference:>19.1f}")
    print(f"\n{'spent inside the hook itself':<28}{'wall':>9}{'processor':>11}{'names':>8}")
    runs, names = [on["spent"] for on, _ in pairs], pairs[0][0]["names"]
    for step, label in STEPS:
        wall, processor = (statistics.median(run[step][clock] for run in runs) * 1e3 for clock in (0, 1))
        print(f"{label:<28}{wall:>9.2f}{processor:>11.2f}{names.get(step, ''):>8}")
    total = statistics.median(run["timm"][1] + run["torchvision"][1] for run in runs) * 1e3
    print(f"\nregistration with both hosts: {total:.1f} ms of processor time for {sum(names.values())} names")


if __name__ == "__main__":
    main()
