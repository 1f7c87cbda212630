"""Load time of our models and their peers: cached ``create_model(pretrained=True)`` and ``get_model(weights=...)``.

Files with random weights lie in a temporary Hub cache and torch home, where the libraries expect their downloads, so
every load is offline and cached. Peers and ours alternate in one process with a warm file cache; medians and ratios are
printed. Peak memory is measured in fresh processes, above that of the imports.

    python -m benchmarks.load --out DIR [--repeats 9] [--sizes Ti S B L] [--device cuda] [--cold]

DIR gets ``load.json``, ``load.txt`` and ``load.png``.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.load_report import write
from benchmarks.memory import in_fresh_process, reset_peak, status

SIZES = {  # ours, timm's peer, torchvision's peer and the file that it downloads
    "Ti": ("vit_ti16_convstem", "vit_tiny_patch16_224", None, None),
    "S": ("vit_s16_convstem", "vit_small_patch16_224", None, None),
    "B": ("vit_b16_convstem", "vit_base_patch16_224", "vit_b_16", "vit_b_16-c867db91.pth"),
    "L": ("vit_l16_convstem", "vit_large_patch16_224", "vit_l_16", "vit_l_16-852ce7e3.pth"),
}

FIRST_CLASS = "bench/{}"
"""Repository, for each of our names, with a checkpoint that already has our stem."""


def main() -> None:
    """Prepare the files, measure, print and draw."""
    arguments = parse()
    home = Path(tempfile.mkdtemp(prefix="convstem-load-"))
    os.environ |= environment(home)
    files = {size: prepare(home, *SIZES[size]) for size in arguments.sizes}
    cache = "cold" if arguments.cold else "warm"
    results: dict[str, Any] = {"machine": machine(arguments.device), "repeats": arguments.repeats, "cache": cache}
    results["sizes"] = {}
    for size in arguments.sizes:
        results["sizes"][size] = measure(size, files[size], arguments)
        write(arguments.out, results)
    print((arguments.out / "load.txt").read_text(encoding="utf-8"))


def environment(home: Path) -> dict[str, str]:
    """Return the environment variables that place all caches in a folder."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(home / "hub"),
        "CONVSTEM_CACHE": str(home / "convstem"),
        "TORCH_HOME": str(home / "torch"),
    }


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cold", action="store_true", help="drop the files from the system's cache before each load")
    return parser.parse_args()


def prepare(home: Path, ours: str, timm_name: str, tv_name: str | None, tv_file: str | None) -> int:
    """Write the files for the loads of one size; return the bytes of our own checkpoint."""
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
    """Return the expressions to measure, as a user would write them, by label."""
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
"""(a, b): the printed speed-up is the time of b divided by that of a."""


def measure(size: str, file_bytes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return times in seconds, ratios and peak memory in bytes of one size."""
    table = loads(size, arguments.device)
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in table}
    for round_ in range(arguments.repeats + 1):
        for label, expression in table.items():
            if arguments.cold:
                forget(Path(os.environ["TORCH_HOME"]).parent)
            pair = load_and_run(expression, arguments.device)
            if round_:  # the first round warms the file cache and convstem's
                times[label].append(pair)
    loaded, used = ({label: [pair[end] for pair in pairs] for label, pairs in times.items()} for end in (0, 1))
    result = {"file_bytes": file_bytes, **compare(loaded), "with_first_image": compare(used)}
    if arguments.device == "cpu":
        result["peak_bytes"] = {label: in_fresh_process(peak, expression) for label, expression in table.items()}
    else:
        result["pinned_bandwidth"] = pinned_bandwidth(arguments.device)
        result["bandwidth"] = file_bytes / result["medians"]["ours, own checkpoint"]
    return result


def compare(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return times with their medians, and the speed-up of each pair."""
    medians = {label: statistics.median(values) for label, values in seconds.items()}
    speedup = {f"{a} / {b}": medians[b] / medians[a] for a, b in PAIRS if a in medians and b in medians}
    return {"seconds": seconds, "medians": medians, "speedup": speedup}


def forget(home: Path) -> None:
    """Remove the files of a folder from the system's cache."""
    gc.collect()  # files that a model still maps would stay,
    os.sync()  # and so would unwritten pages
    for path in filter(Path.is_file, home.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_and_run(expression: str, device: str) -> tuple[float, float]:
    """Return the seconds until a model is loaded, and until its first image is done."""
    import timm
    import torch
    import torchvision

    wait: Callable[[], None] = torch.cuda.synchronize if device != "cpu" else lambda: None
    image = torch.zeros(1, 3, 224, 224, device=device)
    gc.collect()
    start = time.perf_counter()
    model = eval(expression, {"timm": timm, "torch": torch, "torchvision": torchvision})
    wait()
    loaded = time.perf_counter() - start
    with torch.inference_mode():
        model.eval()(image.to(next(model.parameters()).dtype))
    wait()
    return loaded, time.perf_counter() - start


def peak(expression: str) -> dict[str, int]:
    """Return peak bytes above the imports, in a fresh process: after loading, and after one forward pass."""
    import timm
    import torch
    import torchvision

    import convstem.models.timm_models  # noqa: F401 (what building a model imports)

    start = reset_peak()
    model = eval(expression, {"timm": timm, "torch": torch, "torchvision": torchvision}).eval()
    loaded = status("VmHWM") - start
    with torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))
    return {"loaded": loaded, "used": status("VmHWM") - start}


def pinned_bandwidth(device: str) -> float:
    """Return bytes per second from pinned memory to the device, the upper limit of a load."""
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
    hardware = f"{platform.machine()} {cpu}, {torch.backends.cpu.get_cpu_capability()}, {cores} cores{accelerator}"
    return f"{hardware}; python {platform.python_version()}, {packages}"


if __name__ == "__main__":
    main()
