"""Is a conv stem more robust against adversarial images than its patchify twins? Adversarially trained nano models.

Singh et al. (arXiv 2303.01870) report a gain of about four points of AutoAttack accuracy for a conv stem at the size of
ViT-S on ImageNet. This tests the sign of the gain at the smallest scale: every stem is trained on images moved by
projected gradient descent within a radius, and then attacked within the same radius.

    pip install "convstem[robustness]"
    python -m tools.cifar10 DATA
    python -m experiments.robustness --data-dir DATA --out OUT --epochs 10 --seeds 0 1 2 --jobs 2

The attacks are those of the Adversarial Robustness Toolbox: PGD-50 on ``--attacked`` test images, and AutoAttack on
``--autoattacked`` images. AutoAttack has three of its four parts: APGD on cross-entropy and on the difference of logits
ratio, and Square, which takes longer than the training at its usual 5,000 iterations; FAB is missing. It can be
interrupted: the same command continues. OUT/runs.jsonl gets a line with the figures of each finished run; OUT gets
``results.txt`` and ``robustness.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from convstem.files.paths import write_whole
from experiments.cifar10 import data, sweep
from experiments.cifar10.data import MEAN, STD, Split
from experiments.cifar10.models import COLOURS, STEMS, pflop, twin_settings
from experiments.cifar10.settings import Settings, differences, precision_of
from experiments.cifar10.training import load_trained
from experiments.machine import machines
from experiments.runs import Row, by_name
from experiments.seeds import Scores, paired, spread, verdict
from tools.cifar10 import CLASSES, SIZE

TABLE, PICTURE = "results.txt", "robustness.png"
ATTACKS = ("clean", "PGD-50", "AutoAttack")
SQUARE = "Square's iterations"

Found = dict[str, dict[int, Row]]
"""Records of the runs by stem and seed."""


def classifier(model: nn.Module, device: str) -> Any:
    """Return a model for the toolbox: it takes images in 0 to 1 and normalises them."""
    from art.estimators.classification import PyTorchClassifier

    statistics = tuple(numpy.array(values, dtype=numpy.float32).reshape(3, 1, 1) for values in (MEAN, STD))
    return PyTorchClassifier(
        model.eval(), nn.CrossEntropyLoss(), (3, SIZE, SIZE), len(CLASSES), clip_values=(0.0, 1.0),
        preprocessing=statistics, device_type="gpu" if device.startswith("cuda") else "cpu",
    )  # fmt: skip


def attacks(target: Any, radius: float, square_iterations: int) -> dict[str, Any]:
    """Return the attacks on a classifier within a radius in 1/255, by name."""
    from art.attacks.evasion import AutoAttack, AutoProjectedGradientDescent, ProjectedGradientDescent, SquareAttack

    reach = radius / 255
    shared = {"eps": reach, "batch_size": 250, "verbose": False}
    apgd = partial(AutoProjectedGradientDescent, target, eps_step=2 * reach, max_iter=100, nb_random_init=1, **shared)
    parts = [apgd(loss_type=loss) for loss in ("cross_entropy", "difference_logits_ratio")]
    parts.append(SquareAttack(target, max_iter=square_iterations, p_init=0.8, nb_restarts=1, **shared))
    return {
        "PGD-50": ProjectedGradientDescent(target, eps_step=reach / 10, max_iter=50, num_random_init=1, **shared),
        "AutoAttack": AutoAttack(target, eps=reach, attacks=parts, batch_size=250),
    }


def attacked_accuracy(target: Any, attack: Any, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy of a classifier under an attack, in per cent.

    Args:
        attack: of the toolbox; None for clean images.
        images: bytes [count, 3, height, width].
        labels: classes [count].
    """
    pixels, truth = (images.float() / 255).contiguous().cpu().numpy(), labels.cpu().numpy()
    moved = attack.generate(pixels, truth) if attack else pixels
    return 100 * float((target.predict(moved, batch_size=250).argmax(1) == truth).mean())


def measure(model: nn.Module, test: Split, settings: Settings, counts: dict[str, int], device: str) -> dict[str, float]:
    """Return the accuracy under each attack.

    Args:
        counts: number of images for each attack, spread evenly over the test images; and Square's iterations.
    """
    target = classifier(model, device)
    found = {"clean": None, **attacks(target, settings.attack_radius, counts[SQUARE])}
    figures = {}
    for name in ATTACKS:
        rows = torch.linspace(0, len(test.labels) - 1, counts[name]).long()
        numpy.random.seed(settings.seed)  # the toolbox uses numpy's global state
        figures[name] = attacked_accuracy(target, found[name], test.images[rows], test.labels[rows])
    return figures


def carry_out(name: str, settings: Settings, where: sweep.Where, counts: dict[str, int]) -> Row:
    """Train and attack one model, and return its record."""
    row = sweep.train_one(name, settings, where)
    if sweep.DIVERGED in row:
        return row
    _, test = data.read(where.data_dir, settings, where.device)
    model = load_trained(where.checkpoint(name), where.device)
    return {**row, "counts": counts, "figures": measure(model, test, settings, counts, where.device)}


def refuse_other_attacks(out: Path, counts: dict[str, int]) -> None:
    """Raise ``ValueError``, before any training, if runs in a folder were attacked with other counts."""
    found, _ = read_runs(out)
    if found and (changed := differences(found, counts)):
        raise ValueError(f"{out} was attacked with {changed}: choose another --out, or the same flags")


# Table and picture


def read_runs(out: Path) -> tuple[dict[str, int], Found]:
    """Return the counts of the attacks, and the attacked runs in the order of the stems.

    Raises:
        ValueError: runs were attacked differently.
    """
    counts: dict[str, int] = {}
    found: Found = {stem: {} for stem in STEMS}
    for name, row in sorted(by_name(out).items()):
        if sweep.DIVERGED in row:
            continue
        if counts not in ({}, row["counts"]):
            raise ValueError(f"all runs need the same attacks; {name} has {row['counts']}, others have {counts}")
        counts = row["counts"]
        stem, seed = name.rsplit("-", 1)
        found[stem][int(seed)] = row
    return counts, {stem: rows for stem, rows in found.items() if rows}


def to_text(counts: Mapping[str, int], found: Found) -> str:
    """Return the report."""
    if not found:
        return "no run has finished yet\n"
    lines = [
        "CIFAR-10 accuracy (%) of adversarially trained models; mean +- sample deviation over seeds",
        ", ".join(f"{name} on {counts[name]}" for name in ATTACKS) + f" images; {SQUARE}: {counts[SQUARE]}",
    ]
    lines += ["", f"{'stem':<12}{'runs':>5}" + "".join(f"{name:>18}" for name in ATTACKS)]
    for stem, rows in found.items():
        cells = "".join(f"{spread(accuracies(rows, name).values()):>18}" for name in ATTACKS)
        lines.append(f"{stem:<12}{len(rows):>5}{cells}")
    lines += ["", "conv stem minus its twin (points), paired by seed"]
    for stem, name in product(STEMS[1:], ATTACKS):
        if gain := paired(*(accuracies(found.get(one, {}), name) for one in ("conv", stem))):
            lines.append(verdict(f"{name}, against {stem}", gain))
    return "\n".join([*lines, "", *circumstances([row for rows in found.values() for row in rows.values()])]) + "\n"


def accuracies(rows: Mapping[int, Row], attack: str) -> Scores:
    """Return the accuracy under an attack, in per cent, by seed."""
    return {seed: row["figures"][attack] for seed, row in rows.items()}


def circumstances(rows: Sequence[Row]) -> list[str]:
    """Return the settings of the training, the hours, and the machines."""
    shared = rows[0]["settings"]
    hours, work = sum(row["cpu_hours"] for row in rows), sum(map(pflop, rows))
    return [
        f"{shared['epochs']} epochs; attack of {shared['attack_steps']} steps within {shared['attack_radius']:g}/255; "
        f"{shared['opt']}, {shared['lr']:g}; batch {shared['batch_size']}; {precision_of(shared)}",
        f"{hours:.1f} hours of processor time and {work:.1f} PFLOP in {len(rows)} trainings",
        *machines(rows),
    ]


def plot(found: Found, path: Path) -> None:
    """Draw the accuracy under each attack: a dot per seed, a column per stem."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for column, (stem, rows) in enumerate(found.items()):
        places = [place + 0.15 * (column - 1) for place in range(len(ATTACKS)) for _ in rows]
        values = [accuracy for name in ATTACKS for accuracy in accuracies(rows, name).values()]
        axes.plot(places, values, "o", color=COLOURS[stem], alpha=0.7, label=stem)
    axes.set(xticks=range(len(ATTACKS)), xticklabels=ATTACKS, ylabel="test accuracy, %", xlim=(-0.5, 2.5))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(out: Path) -> None:
    """Print the table of a folder; write it and the picture there."""
    counts, found = read_runs(out)
    text = to_text(counts, found)
    write_whole(out / TABLE, lambda path: path.write_text(text, encoding="utf-8"))
    if found:
        plot(found, out / PICTURE)
    print(text, end="")


# Command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sweep.add_flags(parser)
    sweep.add_bfloat16(parser)
    parser.add_argument("--model", default="vit_nano4_convstem")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-images", type=int, default=0, help="first images of each class, in all; 0: all")
    parser.add_argument("--attack-steps", type=int, default=3, help="of training")
    parser.add_argument("--attack-radius", type=float, default=4.0, help="in 1/255")
    parser.add_argument("--attacked", type=int, default=1000, help="test images that PGD-50 attacks")
    parser.add_argument("--autoattacked", type=int, default=200, help="test images that AutoAttack attacks")
    parser.add_argument("--square-iterations", type=int, default=1000, help="of AutoAttack's last part; usual: 5000")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Do the missing runs, then report."""
    args = parse_args(argv)
    common = Settings(
        opt="adamw", lr=2e-3, clip_grad=1.0, epochs=args.epochs, batch_size=args.batch_size,
        train_images=args.train_images, attack_steps=args.attack_steps, attack_radius=args.attack_radius,
        **args.bfloat16,
    )  # fmt: skip
    runs = {
        f"{stem}-{seed}": Settings(**{**asdict(common), **twin_settings(args.model, stem), "seed": seed})
        for seed, stem in product(args.seeds, STEMS)
    }
    counts = {
        "clean": args.attacked, "PGD-50": args.attacked, "AutoAttack": args.autoattacked, SQUARE: args.square_iterations
    }  # fmt: skip
    refuse_other_attacks(args.out, counts)
    sweep.run_all(runs, sweep.Where.from_flags(args), partial(carry_out, counts=counts))
    write(args.out)


if __name__ == "__main__":
    main()
