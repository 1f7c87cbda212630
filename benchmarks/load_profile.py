"""Where the time of a cached load goes: the shares of timm, torch and safetensors, and the rest, which is convstem's.

    python -m benchmarks.load_profile > benchmarks/results/load/profile.txt

The listed functions are timed inside the loads of ``benchmarks.load``. The second column is their share of the whole;
the last line is the speed-up over timm if everything else took no time. Needs quiet cores.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.load import SIZES, environment, loads, machine, prepare

PARTS = {
    "timm's constructor": "timm.models.vision_transformer.VisionTransformer.__init__",
    "torch's load_state_dict": "torch.nn.Module.load_state_dict",
    "safetensors opens the file": "safetensors.torch.load_file",
}
"""Label of a part of a load -> the function that does it; none calls another."""

PEER, OURS = "timm peer", "ours, own checkpoint"


@contextmanager
def timed(target: str, seconds: list[float]) -> Iterator[None]:
    """Add the seconds of each call of a function to a list."""
    import pkgutil

    function = pkgutil.resolve_name(target)

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    with patch(target, call):
        yield


def seconds_of(load: Callable[[], Any]) -> float:
    """Return the seconds of a load."""
    gc.collect()
    start = time.perf_counter()
    load()
    return time.perf_counter() - start


def measure(size: str, repeats: int) -> None:
    """Print the parts of a size's load."""
    import timm
    import torch

    table = {
        label: eval(f"lambda: {loads(size, 'cpu')[label]}", {"timm": timm, "torch": torch}) for label in (PEER, OURS)
    }
    spent: dict[str, list[float]] = {label: [] for label in PARTS}
    whole: dict[str, list[float]] = {label: [] for label in table}
    for repeat in range(repeats + 1):
        whole[PEER].append(seconds_of(table[PEER]))
        with ExitStack() as stack:
            for label, target in PARTS.items():
                stack.enter_context(timed(target, spent[label]))
            whole[OURS].append(seconds_of(table[OURS]))
        if not repeat:  # warms the file cache
            for values in (*spent.values(), *whole.values()):
                values.clear()
    peer, total = (1e3 * statistics.median(whole[label]) for label in (PEER, OURS))
    rows = {label: 1e3 * statistics.median(values) for label, values in spent.items()}
    theirs = sum(rows.values())
    rows["everything else, all of ours"] = total - theirs
    print(f"\n{size}: {PEER} {peer:.1f} ms; {OURS} {total:.1f} ms, {peer / total:.1f} times less")
    for label, value in rows.items():
        print(f"  {label:30}{value:8.1f} ms{value / total:8.0%}")
    print(f"  without everything else the load would take {peer / theirs:.1f} times less")


def main() -> None:
    """Prepare the files, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["B"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="convstem-load-") as folder:
        os.environ |= environment(Path(folder))
        for size in arguments.sizes:
            prepare(Path(folder), *SIZES[size])
        print(f"{machine('cpu')}\nmedian of {arguments.repeats} alternating loads, warm file cache")
        for size in arguments.sizes:
            measure(size, arguments.repeats)


if __name__ == "__main__":
    main()
