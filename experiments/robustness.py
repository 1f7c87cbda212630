"""Is a conv stem more robust against adversarial images than its patchify twins? Adversarially trained nano models.

Singh et al. (arXiv 2303.01870) report about four points of AutoAttack accuracy for a conv stem at the size of ViT-S on
ImageNet. This asks for the sign at the smallest scale: every stem is trained on images moved by projected gradient
descent within a radius, and then attacked within the same radius.

    pip install "convstem[robustness]"
    python -m tools.cifar10 DATA
    python -m experiments.robustness --data-dir DATA --out OUT --epochs 10 --seeds 0 1 2 --jobs 2

The attacks are those of the Adversarial Robustness Toolbox: PGD-50 on ``--attacked`` test images, and AutoAttack on
``--autoattacked`` of them, with three of its four parts: APGD on cross-entropy and on the difference of logits ratio,
and Square, which with its usual 5,000 iterations takes longer than the training (FAB is missing). Interrupt it freely:
the same command goes on. OUT gets ``results.txt`` and ``robustness.png``; a run's figures lie in
OUT/runs/NAME/robustness.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from convstem.files.writing import write_whole
from experiments import robustness_report as report
from experiments.cifar10 import data, sweep
from experiments.cifar10.checkpoints import load_trained
from experiments.cifar10.models import STEMS, twin_settings
from experiments.cifar10.settings import Settings, differences
from experiments.robustness_report import ATTACKS, FIGURES, SQUARE
from experiments.transplant_cifar10_data import MEAN, STD, Split
from tools.cifar10 import CLASSES, SIZE


def classifier(model: nn.Module, device: str) -> Any:
    """Return a model as the toolbox wants it: images in 0 to 1, normalisation inside."""
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
    """Return the share of images that a classifier still gets right, in per cent.

    Args:
        attack: of the toolbox; None: the images as they are.
        images: bytes [count, 3, height, width].
        labels: classes [count].
    """
    pixels, truth = (images.float() / 255).contiguous().cpu().numpy(), labels.cpu().numpy()
    moved = attack.generate(pixels, truth) if attack else pixels
    return 100 * float((target.predict(moved, batch_size=250).argmax(1) == truth).mean())


def measure(model: nn.Module, test: Split, settings: Settings, counts: dict[str, int], device: str) -> dict[str, float]:
    """Return the accuracy under each attack.

    Args:
        counts: on how many images, spread evenly over the test images, by attack; and of Square's iterations.
    """
    target = classifier(model, device)
    found = {"clean": None, **attacks(target, settings.attack_radius, counts[SQUARE])}
    figures = {}
    for name in ATTACKS:
        rows = torch.linspace(0, len(test.labels) - 1, counts[name]).long()
        numpy.random.seed(settings.seed)  # the toolbox draws from numpy's
        figures[name] = attacked_accuracy(target, found[name], test.images[rows], test.labels[rows])
    return figures


def carry_out(folder: Path, settings: Settings, where: sweep.Where, counts: dict[str, int]) -> None:
    """Train and attack one model, and write down its figures."""
    sweep.train_one(folder, settings, where)
    if (folder / sweep.DIVERGED).exists():
        return
    _, test = data.read(where.data_dir, settings, where.device)
    figures = measure(load_trained(folder, where.device), test, settings, counts, where.device)
    record = {"counts": counts, "figures": figures}
    write_whole(folder / FIGURES, lambda path: path.write_text(json.dumps(record), encoding="utf-8"))


def refuse_other_attacks(out: Path, counts: dict[str, int]) -> None:
    """Raise ``ValueError`` if finished runs in a folder were attacked with other counts; nothing is trained then."""
    found, _ = report.read_figures(out)
    if found and (changed := differences(found, counts)):
        raise ValueError(f"{out} was attacked with {changed}: choose another --out, or the same flags")


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
    """Train and attack what is missing, then report."""
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
    sweep.run_all(runs, sweep.Where.from_flags(args), partial(carry_out, counts=counts), FIGURES)
    report.write(args.out)


if __name__ == "__main__":
    main()
