"""The reports in ``experiments/results`` are those of the runs beside them, and the docs' tables are theirs."""

import statistics
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path

import pytest

from experiments import cifar10_evidence, dense_evidence, more_pixels, nano4, robustness, transplant_gain_report
from experiments.cifar10.models import STEMS
from experiments.cifar10_evidence import best_of_seeds, rates_of
from experiments.seeds import paired

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
STEM_NAMES = dict(zip(STEMS, ("conv", "patchify", "patchify, one block more"), strict=True))


def evidence_text(out: Path) -> str:
    return cifar10_evidence.to_text(cifar10_evidence.read_runs(out))


def gain_text(out: Path) -> str:
    return transplant_gain_report.to_text(*transplant_gain_report.read(out))


REPORTS: dict[str, Callable[[Path], str]] = {
    "cifar10_evidence": evidence_text,
    "cifar10_evidence_xs4": evidence_text,
    "dense_evidence": dense_evidence.to_text,
    "more_pixels": more_pixels.to_text,
    "nano4": nano4.report,
    "robustness": lambda out: robustness.to_text(*robustness.read_runs(out)),
    "transplant_gain": gain_text,
    "transplant_gain_dinov2": gain_text,
    "transplant_gain_dinov2_decay": gain_text,
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_kept_report_is_of_the_kept_runs(name: str) -> None:
    assert REPORTS[name](RESULTS / name) == (RESULTS / name / "results.txt").read_text(encoding="utf-8")


def cell(values: Iterable[float], form: str) -> str:
    """Return mean and sample deviation as the docs write them."""
    values = list(values)
    deviation = f" ± {statistics.stdev(values):{form.removeprefix('+')}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def finetuning_rows() -> Iterator[str]:
    """The patchify model, and what the transplant gains in as many steps, with and without layer-wise decay."""
    optimizers, scopes = {"adamw": "AdamW", "sgd": "SGD"}, {"all": "all weights", "stem and head": "stem and head"}
    tables = []
    for name in ("transplant_gain_dinov2_decay", "transplant_gain_dinov2"):
        done = transplant_gain_report.read_results(RESULTS / name)
        tables.append({tuple(setting.values()): (runs, gains)
                       for setting, runs, gains in transplant_gain_report.groups(done)})  # fmt: skip
    for optimizer, scope, batch in product(optimizers, scopes, (128, 8)):
        cells = []
        for table in tables:
            patchify, _ = table[optimizer, batch, scope, "patchify", "steps"]
            _, gains = table[optimizer, batch, scope, "transplant", "steps"]
            cells += [
                f"{statistics.fmean(run.accuracy for run in patchify.values()):.1f}",
                cell(gains.values(), "+.2f"),
            ]
        yield row(f"{optimizers[optimizer]}, {scopes[scope]}", batch, *cells)


def evidence_rows() -> Iterator[str]:
    """Accuracy at the best rate of each optimizer, and the gap between them."""
    runs = cifar10_evidence.read_runs(RESULTS / "cifar10_evidence")
    for stem, name in STEM_NAMES.items():
        adamw, sgd = (best_of_seeds(rates_of(runs, "vit_nano4_convstem", kind, stem)) for kind in ("adamw", "sgd"))
        yield row(name, *(cell(scores.values(), ".1f") for scores in (adamw, sgd, paired(adamw, sgd))))


def robustness_rows() -> Iterator[str]:
    """Accuracy under each attack."""
    _, found = robustness.read_runs(RESULTS / "robustness")
    for stem, name in STEM_NAMES.items():
        scores = (robustness.accuracies(found[stem], attack).values() for attack in robustness.ATTACKS)
        yield row(name, *(cell(values, ".1f") for values in scores))


@pytest.mark.parametrize(
    ("page", "rows"),
    [("finetuning.md", finetuning_rows), ("conv_stem.md", evidence_rows), ("conv_stem.md", robustness_rows)],
)
def test_a_table_of_the_docs_is_of_the_kept_runs(page: str, rows: Callable[[], Iterable[str]]) -> None:
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    assert [line for line in rows() if line not in lines] == []
