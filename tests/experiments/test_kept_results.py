"""The reports in ``experiments/results`` match the runs beside them, and the docs' tables match the reports."""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from experiments import cifar10_evidence, dense_evidence, more_pixels, nano4, robustness, transplant_gain_report
from experiments.cifar10.models import STEMS
from experiments.cifar10_evidence import best_of_seeds, rates_of
from experiments.runs import RUNS, Row, read_lines
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
    """Return mean and sample deviation in the docs' format."""
    values = list(values)
    if not values:
        return "-"  # no runs
    deviation = f" ± {statistics.stdev(values):{form.removeprefix('+')}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def finetuning_rows() -> Iterator[str]:
    """The patchify model, and the transplant's gain in equally many steps, with and without layer-wise decay."""
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


PIXELS = {
    "source": "the source itself, at 16 px",
    "stride 4": "transplant, stride 4",
    "averages": "transplant, stride 4, a leaner stem",
    "kernel 4": "plain ViT, its kernel spread over 4 x 4 pixels",
    "patch 2": "plain ViT, patch 2",
}


def pixels_rows() -> Iterator[str]:
    """Accuracy with more pixels, by budget."""
    folder = RESULTS / "more_pixels"
    runs, known = read_lines(folder / RUNS), json.loads((folder / more_pixels.CONDITIONS).read_text(encoding="utf-8"))
    for arm, name in PIXELS.items():
        accuracies = (cell(more_pixels.figures(runs, budget)[arm].values(), ".2f") for budget in more_pixels.BUDGETS)
        about = known["arms"][arm]
        yield row(name, about["tokens"], f"{known['ratios'][arm]:.2f}", f"{about['untrained']:.2f}", *accuracies)


MAPS = {
    "stride 16": "tokens at stride 16",
    "upsampled": "the same, upsampled to 8",
    "stride 8": "tokens at stride 8, image moved by 4",
    "not moved": "tokens at stride 8",
    "enlarged": "tokens at stride 16, image enlarged by 2",
    "stem maps": "tokens at stride 16, and the stem's maps",
    "random maps": "tokens at stride 16, and a random stem's maps",
}
WHOLE = {
    "stem maps": "transplant, its stem's maps",
    "fast stem": "the same, the stem at the higher rate",
    "random stem": "a random stem in its place",
    "four blocks": "plain ViT, four blocks",
    "random maps": "plain ViT, a random stem beside it",
}


def dense() -> tuple[list[Row], dict[str, Any]]:
    """The runs of the dense evidence, and the cost of an image."""
    folder = RESULTS / "dense_evidence"
    return read_lines(folder / RUNS), json.loads((folder / dense_evidence.COSTS).read_text(encoding="utf-8"))


def frozen_rows() -> Iterator[str]:
    """IoU of both decoders and boundary F1 of the small one, by task, with a frozen encoder."""
    runs, known = dense()
    for arm, name in MAPS.items():
        cells = []
        for task, (decoder, metric) in product(
            dense_evidence.TASKS, (("linear", "mIoU"), ("decoder", "mIoU"), ("decoder", "boundary F1"))
        ):
            found = dense_evidence.chosen(runs, kind="frozen", task=task, arm=arm, decoder=decoder)
            cells.append(cell(dense_evidence.scores(found, metric).values(), ".1f"))
        yield row(name, *cells, f"{known[arm]['decoder']['ms']:.0f}")


def whole_rows() -> Iterator[str]:
    """IoU, boundary F1 and epochs to an IoU of 70 %, by task, for models trained as a whole."""
    runs, known = dense()
    for arm, name in WHOLE.items():
        cells = []
        for task in dense_evidence.TASKS:
            found = dense_evidence.chosen(runs, kind="whole", task=task, arm=arm)
            if not found:
                cells += ["-"] * 4
                continue
            cells.append(str(len(found)))
            cells += [cell(dense_evidence.scores(found, metric).values(), ".1f") for metric in dense_evidence.METRICS]
            cells.append(dense_evidence.epochs_to(found, 70))
        cost = known[dense_evidence.SAME_MODEL.get(arm, arm)]["decoder"]
        yield row(name, *cells, f"{cost['ms']:.0f}")


@pytest.mark.parametrize(
    ("page", "rows"),
    [
        ("finetuning.md", finetuning_rows),
        ("conv_stem.md", evidence_rows),
        ("conv_stem.md", robustness_rows),
        ("stride.md", pixels_rows),
        ("stride.md", frozen_rows),
        ("stride.md", whole_rows),
    ],
)
def test_a_table_of_the_docs_is_of_the_kept_runs(page: str, rows: Callable[[], Iterable[str]]) -> None:
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    assert [line for line in rows() if line not in lines] == []
