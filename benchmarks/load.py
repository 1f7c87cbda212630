"""Loading, side by side with the peers: cached ``create_model(pretrained=True)`` and ``get_model(weights=...)``.

Files with random weights stand in a temporary Hub cache and torch home where the peers expect their downloads, so
every load is a user's warm, offline one. Peer and ours alternate in one process with a warm file cache; medians and
ratios are printed. Peak memory is measured in fresh processes, above what the imports need.

    python -m benchmarks.load --out DIR [--repeats 9] [--sizes Ti S B L] [--device cuda]

DIR gets ``load.json``, ``load.txt`` and ``load.png``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIZES = {  # ours, timm's peer, torchvision's peer and the file that it downloads
    "Ti": ("vit_ti16_convstem", "vit_tiny_patch16_224", None, None),
    "S": ("vit_s16_convstem", "vit_small_patch16_224", None, None),
    "B": ("vit_b16_convstem", "vit_base_patch16_224", "vit_b_16", "vit_b_16-c867db91.pth"),
    "L": ("vit_l16_convstem", "vit_large_patch16_224", "vit_l_16", "vit_l_16-852ce7e3.pth"),
}

FIRST_CLASS = "bench/{}"
"""Repository with a checkpoint that has our stem already, for each of our names."""

MEMORY = """
import json, sys, torch, timm, torchvision
import convstem.models.timm_vit, convstem.models.timm_trunk
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
create, forward = json.loads(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")  # reset the peak
start = status("VmRSS")
model = eval(create).eval()
loaded = status("VmHWM") - start
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224))
print(json.dumps({"loaded": loaded, "used": status("VmHWM") - start}))
"""


def main() -> None:
    """Prepare the files, measure, print and draw."""
    arguments = parse()
    home = Path(tempfile.mkdtemp(prefix="convstem-load-"))
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(home / "hub"),
        "CONVSTEM_CACHE": str(home / "convstem"),
        "TORCH_HOME": str(home / "torch"),
    }
    files = {size: prepare(home, *SIZES[size]) for size in arguments.sizes}
    results: dict[str, Any] = {"machine": machine(arguments.device), "repeats": arguments.repeats, "sizes": {}}
    for size in arguments.sizes:
        results["sizes"][size] = measure(size, files[size], arguments)
        write(arguments.out, results)
    print((arguments.out / "load.txt").read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def prepare(home: Path, ours: str, timm_name: str, tv_name: str | None, tv_file: str | None) -> int:
    """Write the files that the loads of one size read; return the bytes of the largest."""
    import timm
    import torch
    import torchvision
    from safetensors.torch import save_file

    plain = timm.create_model(timm_name)
    repositories = {plain.pretrained_cfg["hf_hub_id"], timm.get_pretrained_cfg(ours).hf_hub_id}
    for repository in repositories:
        snapshot = hub_folder(home, repository)
        save_file(plain.state_dict(), snapshot / "model.safetensors", {"format": "pt"})
    stem = timm.create_model(ours, pretrained=True)
    path = hub_folder(home, FIRST_CLASS.format(ours)) / "model.safetensors"
    save_file(stem.state_dict(), path, {"format": "pt"})
    if tv_name and tv_file:
        checkpoints = home / "torch" / "hub" / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        torch.save(torchvision.models.get_model(tv_name).state_dict(), checkpoints / tv_file)
    return path.stat().st_size


def hub_folder(home: Path, repository: str) -> Path:
    """Return a new snapshot folder of a repository in the Hub cache, at its newest commit."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return snapshot


def loads(size: str, device: str) -> dict[str, str]:
    """Return the expressions to measure, by label; each is what a user would write."""
    ours, timm_name, tv_name, _ = SIZES[size]
    first = f"pretrained_cfg_overlay={{'hf_hub_id': {FIRST_CLASS.format(ours)!r}}}"
    there = "" if device == "cpu" else f".to({device!r})"
    here = "" if device == "cpu" else f", device={device!r}"
    table = {
        "timm peer": f"timm.create_model({timm_name!r}, pretrained=True){there}",
        "ours, own checkpoint": f"timm.create_model({ours!r}, pretrained=True, {first}{here})",
        "ours, transplanted tag": f"timm.create_model({ours!r}, pretrained=True{here})",
    }
    if tv_name:
        ours_tv = ours.replace("vit_b16", "vit_b_16").replace("vit_l16", "vit_l_16")
        table["torchvision peer"] = f"torchvision.models.get_model({tv_name!r}, weights='IMAGENET1K_V1'){there}"
        table["ours in torchvision"] = f"torchvision.models.get_model({ours_tv!r}, weights='DEFAULT'){there}"
    if device != "cpu":
        table["timm peer, bf16"] = f"timm.create_model({timm_name!r}, pretrained=True).to({device!r}, torch.bfloat16)"
        table["ours, bf16"] = f"timm.create_model({ours!r}, pretrained=True, {first}{here}, dtype=torch.bfloat16)"
    return table


PAIRS = (
    ("ours, own checkpoint", "timm peer"),
    ("ours, transplanted tag", "timm peer"),
    ("ours in torchvision", "torchvision peer"),
    ("ours, bf16", "timm peer, bf16"),
    ("ours, own checkpoint", "ours, transplanted tag"),
)
"""Whose time is divided by whose: the first by the second's is the speed-up printed."""


def measure(size: str, file_bytes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return times in seconds, ratios and peak memory in bytes of one size."""
    import timm
    import torch
    import torchvision

    names = {"timm": timm, "torch": torch, "torchvision": torchvision}
    table = loads(size, arguments.device)
    wait: Callable[[], None] = torch.cuda.synchronize if arguments.device != "cpu" else lambda: None
    seconds: dict[str, list[float]] = {label: [] for label in table}
    for round_ in range(arguments.repeats + 1):
        for label, expression in table.items():
            gc.collect()
            start = time.perf_counter()
            model = eval(expression, names)
            wait()
            if round_:  # the first round warms the file cache and ours
                seconds[label].append(time.perf_counter() - start)
            del model
    medians = {label: statistics.median(values) for label, values in seconds.items()}
    result: dict[str, Any] = {"file_bytes": file_bytes, "seconds": seconds, "medians": medians}
    result["speedup"] = {f"{a} / {b}": medians[b] / medians[a] for a, b in PAIRS if a in medians and b in medians}
    if arguments.device == "cpu":
        result["peak_bytes"] = {label: peak(expression) for label, expression in table.items()}
    else:
        result["pinned_bandwidth"] = pinned_bandwidth(arguments.device)
        result["bandwidth"] = file_bytes / medians["ours, own checkpoint"]
    return result


def peak(expression: str) -> dict[str, int]:
    """Return peak bytes above the imports in a fresh process: after loading, and after one forward pass."""
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, json.dumps([expression, True])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def pinned_bandwidth(device: str) -> float:
    """Return bytes per second from pinned memory to the device: the most a load can reach."""
    import torch

    source = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return source.nbytes / statistics.median(times)


def machine(device: str) -> str:
    """Return the machine and the versions, for the first line of the results."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "safetensors"))
    accelerator = f", {torch.cuda.get_device_name(device)}" if device != "cpu" else ""
    cores = len(os.sched_getaffinity(0))
    return f"{platform.machine()} {cpu}, {cores} cores{accelerator}; python {platform.python_version()}, {packages}"


def write(out: Path, results: dict[str, Any]) -> None:
    """Write the results as JSON, text and plot."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "load.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = [results["machine"], f"median of {results['repeats']} alternating loads, warm file cache", ""]
    lines.append(f"{'':4}{'load':26}{'median ms':>10}{'min':>8}{'max':>8}{'peak / file':>13}{'after forward':>15}")
    for size, result in results["sizes"].items():
        for label, times in result["seconds"].items():
            row = f"{size:4}{label:26}" + "".join(
                f"{1e3 * value:{width}.1f}"
                for value, width in ((result["medians"][label], 10), (min(times), 8), (max(times), 8))
            )
            if memory := result.get("peak_bytes", {}).get(label):
                row += f"{memory['loaded'] / result['file_bytes']:13.2f}{memory['used'] / result['file_bytes']:15.2f}"
            lines.append(row)
        lines += [f"{size:4}speed-up {pair}: {ratio:.2f}" for pair, ratio in result["speedup"].items()]
        if "bandwidth" in result:
            share = result["bandwidth"] / result["pinned_bandwidth"]
            lines.append(f"{size:4}bytes per second: {result['bandwidth']:.2e}, {share:.0%} of pinned copies")
        lines.append("")
    (out / "load.txt").write_text("\n".join(lines), encoding="utf-8")
    draw(out / "load.png", results)


def draw(path: Path, results: dict[str, Any]) -> None:
    """Draw the medians as bars on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = list(dict.fromkeys(label for result in results["sizes"].values() for label in result["medians"]))
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.8 / len(labels)
    for place, label in enumerate(labels):
        rows = [(i, r["medians"][label]) for i, r in enumerate(results["sizes"].values()) if label in r["medians"]]
        positions = [i + (place - (len(labels) - 1) / 2) * width for i, _ in rows]
        bars = axes.bar(positions, [1e3 * value for _, value in rows], width, label=label, log=True)
        axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
    axes.set_xticks(range(len(results["sizes"])), [f"ViT-{size}/16" for size in results["sizes"]])
    axes.set_ylabel("milliseconds to a loaded model")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
