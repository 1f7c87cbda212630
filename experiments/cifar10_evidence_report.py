"""Table and plots of experiments/cifar10_evidence.py, from the logs of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.cifar10.models import STEMS, pflop
from experiments.cifar10.settings import precision_of
from experiments.cifar10_evidence_claims import Curve, Runs, best, claims, final, read_runs, sweep
from experiments.machine import machines
from experiments.seeds import spread

PICTURE = "curves.png"

COLOURS = dict(zip(STEMS, ("tab:blue", "tab:orange", "tab:red"), strict=True))


def cell(curves: Mapping[int, Curve]) -> str:
    """Return mean, spread over seeds, and how many runs were lost."""
    lost = sum(curve.diverged for curve in curves.values())
    return spread(curve.accuracy[-1] for curve in curves.values()) + (f" ({lost} lost)" if lost else "")


def table(runs: Runs, model: str, optimizer: str) -> list[str]:
    """Return the table of one model and optimizer."""
    sweeps = {stem: rates for stem in STEMS if (rates := sweep(runs, model, optimizer, stem))}
    columns = sorted({rate for rates in sweeps.values() for rate in rates})
    lines = [f"{model}, {optimizer}", f"{'stem':<12}" + "".join(f"{f'lr {rate:g}':>18}" for rate in columns)]
    for stem, rates in sweeps.items():
        lines.append(f"{stem:<12}" + "".join(f"{cell(rates[rate]) if rate in rates else '-':>18}" for rate in columns))
    return [*lines, ""]


def sizes(runs: Runs) -> list[str]:
    """Return the size and cost of each model."""
    heads = {key[0::2]: curve.head for key, curves in runs.items() for curve in curves.values() if curve.head}
    return [f"{model}, {stem}: {head['parameters']:,} parameters, {head['gmacs']:.4f} GMACs"
            for (model, stem), head in sorted(heads.items())]  # fmt: skip


def circumstances(runs: Runs) -> list[str]:
    """Return what all runs share, and on what they ran for how long."""
    heads = [curve.head for curves in runs.values() for curve in curves.values() if curve.head]
    shared = heads[0]["settings"]
    hours, work = sum(head["cpu_hours"] for head in heads), sum(map(pflop, heads))
    images, precision = shared["train_images"] or "all", precision_of(shared)
    return [
        f"{shared['epochs']} epochs of {images} training images, all test images; batch {shared['batch_size']}, "
        f"label smoothing {shared['smoothing']:g}, clipped at {shared['clip_grad']:g}; {precision}",
        f"{hours:.1f} hours of processor time and {work:.1f} PFLOP in {len(heads)} runs",
        *machines(heads),
    ]


def to_text(runs: Runs) -> str:
    """Return the report."""
    models, optimizers = (sorted({key[index] for key in runs}) for index in range(2))
    seeds = sorted({seed for curves in runs.values() for seed in curves})
    lines = [f"CIFAR-10 test accuracy (%) from scratch; mean +- sample deviation over seeds {seeds}", ""]
    lines += [line for model in models for name in optimizers for line in table(runs, model, name)]
    lines += [
        "In favour of the conv stem (points, or epochs), paired by seed; shown where all seeds agree",
        "",
    ]
    lines += [line for model in models for other in STEMS[1:] for line in claims(runs, model, other)]
    return "\n".join([*lines, *sizes(runs), *circumstances(runs)]) + "\n"


def plot(runs: Runs, path: Path) -> None:
    """Draw, per model and optimizer, accuracy over epochs at the best rate, and final accuracy over the rate."""
    import matplotlib.pyplot as plt

    rows = sorted({key[:2] for key in runs})
    figure, axes = plt.subplots(len(rows), 2, figsize=(10, 3.2 * len(rows)), layout="constrained", squeeze=False)
    for (left, right), (model, optimizer) in zip(axes, rows, strict=True):
        for stem, colour in COLOURS.items():
            rates = sweep(runs, model, optimizer, stem)
            for seed, curve in best(rates).items() if rates else ():
                label = stem if seed == min(best(rates)) else None
                left.plot(range(1, len(curve.accuracy) + 1), curve.accuracy, color=colour, alpha=0.7, label=label)
            right.plot(list(rates), [final(curves) for curves in rates.values()], color=colour, marker="o", label=stem)
        left.set(title=f"{model}, {optimizer}: at the best rate", xlabel="epoch", ylabel="test accuracy, %")
        left.xaxis.get_major_locator().set_params(integer=True)
        right.set(title="final accuracy over learning rate", xlabel="learning rate", xscale="log")
        for place in (left, right):
            place.grid(alpha=0.25)
            place.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(out: Path) -> None:
    """Print the table, and write it and the plots beside the runs."""
    runs = read_runs(out)
    if not any(curve.head for curves in runs.values() for curve in curves.values()):
        raise SystemExit(f"{out / 'runs'} has no finished run yet")
    text = to_text(runs)
    (out / "results.txt").write_text(text, encoding="utf-8")
    plot(runs, out / PICTURE)
    print(text, end="")
