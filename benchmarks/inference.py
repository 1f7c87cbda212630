"""Forward and training time of conv-stem ViTs, their patchify peer and torchvision's own conv stem.

All peers of a group (engine, dtype, batch, image size) alternate in one process; medians, spread and the ratio to the
patchify model are printed. Groups that are already in the results are skipped, so an interrupted run can continue. Stop
all other programs: the numbers are for quiet cores.

    python -m benchmarks.inference forward --out DIR [--sizes B] [--batches 1 8] [--engines eager compile]
    python -m benchmarks.inference train   --out DIR [--sizes Ti] [--batches 8]
    python -m benchmarks.inference scale   --out DIR [--sizes S] [--img-sizes 224 384 512]
    python -m benchmarks.inference forward --out DIR --device cuda --batches 256 --dtypes bfloat16

DIR gets ``inference.json`` and ``inference.md``, and ``inference.png`` of the forward runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.inference_peers import DTYPES, ENGINES, PEERS, Run
from benchmarks.inference_report import write
from benchmarks.load import machine
from benchmarks.memory import in_fresh_process, reset_peak, status


@dataclass(frozen=True)
class Group:
    """Settings that stay fixed while the peers alternate."""

    kind: str
    size: str
    engine: str
    dtype: str
    batch: int
    img_size: int
    device: str

    @property
    def key(self) -> str:
        """Name of the group in the results."""
        return "|".join(map(str, vars(self).values()))


def main() -> None:
    """Measure every group that is not in the results yet."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    path = arguments.out / "inference.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"groups": {}}
    results["machine"] = f"{machine(arguments.device)}; {arguments.threads} threads"
    for group in groups(arguments):
        if group.key not in results["groups"]:
            results["groups"][group.key] = {**vars(group), **measure(group, arguments)}
            write(arguments.out, results, arguments.plot)
    write(arguments.out, results, arguments.plot)
    print((arguments.out / "inference.md").read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("forward", "train", "scale"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="PNG to draw; default: inference.png in DIR")
    parser.add_argument("--sizes", nargs="+", default=["B"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["eager"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--img-sizes", nargs="+", type=int, default=[224])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def groups(arguments: argparse.Namespace) -> Iterator[Group]:
    """Yield the groups to measure: each engine in the dtypes it supports, training in float32 or tf32."""
    axes = product(arguments.sizes, arguments.engines, arguments.dtypes, arguments.batches, arguments.img_sizes)
    for size, engine, dtype, batch, img_size in axes:
        if dtype in (ENGINES[engine].dtypes if arguments.kind != "train" else ("float32", "tf32")):
            yield Group(arguments.kind, size, engine, dtype, batch, img_size, arguments.device)


def measure(group: Group, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of each peer's runs, which alternate, and the peak memory of training."""
    torch.set_float32_matmul_precision("high" if group.dtype == "tf32" else "highest")
    images = torch.randn(group.batch, 3, group.img_size, group.img_size).to(group.device)
    runs = {label: step for label in arguments.peers if (step := prepare(label, group, images))}
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    for repeat in range(arguments.repeats + 2):
        for label, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat > 1:  # two rounds warm caches and compilers
                seconds[label].append(time.perf_counter() - start)
    if group.kind != "train":
        return {"seconds": seconds}
    return {"seconds": seconds, "peak_bytes": {label: in_fresh_process(step_memory, label, group) for label in runs}}


def prepare(label: str, group: Group, images: Tensor) -> Callable[[], None] | None:
    """Return one step of a peer, or None if this size does not exist."""
    torch.manual_seed(0)
    try:
        model = PEERS[label](group.size, img_size=group.img_size)
    except LookupError:
        return None
    model = model.to(group.device)
    gc.collect()
    return training_step(model, images) if group.kind == "train" else forward(model, group, images)


def forward(model: nn.Module, group: Group, images: Tensor) -> Callable[[], None]:
    """Return a forward pass, in channels_last, which makes convolutions faster in every peer."""
    model = model.eval().to(memory_format=torch.channels_last)
    images = images.to(DTYPES[group.dtype])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the exporters and the compiler
        run: Run = ENGINES[group.engine].start(model, group.dtype)

    def step() -> None:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(images)
        wait(group.device)

    return step


def training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """Return an AdamW step on random labels."""
    model.train()
    labels = torch.randint(0, 1000, (len(images),), device=images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wait(images.device)

    return step


def step_memory(label: str, group: Group) -> int:
    """Return the peak bytes of training, model and optimizer included, above those of the imports."""
    start = reset_peak()
    step = prepare(label, group, torch.randn(group.batch, 3, group.img_size, group.img_size).to(group.device))
    assert step
    for _ in range(2):  # the first step creates the optimizer's state
        step()
    return torch.cuda.max_memory_allocated() if group.device != "cpu" else status("VmHWM") - start


def wait(device: torch.device | str) -> None:
    """Wait for an accelerator."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


if __name__ == "__main__":
    main()
