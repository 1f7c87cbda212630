"""Draw the pictures of the experiments again, from the runs in experiments/results.

    python -m experiments.plots

Each picture lies beside its runs, where the experiment writes it. Those of ``pyramid_evidence`` need its models and are
not drawn here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from experiments import (
    cifar10_evidence,
    dense_evidence,
    more_pixels,
    robustness,
    transplant_cifar10_report,
    transplant_gain_report,
)
from experiments.paper_table import RESULTS
from experiments.runs import RUNS, read_lines


def evidence(folder: Path) -> None:
    """Draw accuracy over epochs and over learning rates."""
    cifar10_evidence.plot(cifar10_evidence.read_runs(folder), folder / cifar10_evidence.PICTURE)


def gain(folder: Path) -> None:
    """Draw the gains of a transplant and of a new stem over the patchify model."""
    transplant_gain_report.plot(transplant_gain_report.read_results(folder), folder / transplant_gain_report.PICTURE)


def under_attack(folder: Path) -> None:
    """Draw the accuracy under attack."""
    robustness.plot(robustness.read_runs(folder)[1], folder / robustness.PICTURE)


def fine_tuning(folder: Path) -> None:
    """Draw losses and accuracies of a small transplanted classifier, and the drift of its BatchNorm."""
    results = transplant_cifar10_report.load_results(folder / "results.json")
    transplant_cifar10_report.plot(results, folder / "finetune.png")


def pixels(folder: Path) -> None:
    """Draw the accuracies of fine-tuning with more pixels."""
    more_pixels.plot(read_lines(folder / RUNS), folder / more_pixels.PICTURE)


DRAWN: dict[str, Callable[[Path], None]] = {
    "cifar10_evidence*": evidence,
    "dense_evidence": dense_evidence.plot,
    "more_pixels": pixels,
    "robustness*": under_attack,
    "transplant_cifar10": fine_tuning,
    "transplant_gain*": gain,
}
"""Pattern of folder names -> function that draws."""


def main() -> None:
    """Draw all pictures."""
    found = [(draw, folder) for pattern, draw in DRAWN.items() for folder in sorted(RESULTS.glob(pattern))]
    for draw, folder in tqdm(found, "pictures"):
        draw(folder)


if __name__ == "__main__":
    main()
