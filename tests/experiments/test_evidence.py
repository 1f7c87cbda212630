"""The experiments' sweeps: finished runs are skipped, a diverged run is a result, the claims are counted."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from experiments import cifar10_evidence, machine, nano4, runs, seeds
from experiments.cifar10 import models, sweep, training
from experiments.cifar10.settings import Settings
from tests.experiments.test_cifar10 import random_split


def keep(out: Path, name: str, settings: Settings, accuracies: list[float], **more: Any) -> None:
    """Write a training's line with the fields that a report reads."""
    row = {"settings": asdict(settings), "parameters": 1000, "gmacs": 0.04, "hours": 0.5, "cpu_hours": 1.0,
           "environment": {"machine": f"machine {settings.seed}", "versions": {"torch": "9.9"}}}  # fmt: skip
    epochs = [{"epoch": epoch, "accuracy": value} for epoch, value in enumerate(accuracies)]
    runs.append_line(out / runs.RUNS, {"run": name, **row, "epochs": epochs, **more})


def evidence_args(tmp_path: Path, *more: str) -> Any:
    where = ["--data-dir", str(tmp_path), "--out", str(tmp_path), "--device", "cpu"]
    return cifar10_evidence.parse_args([*where, "--epochs", "3", *more])


def test_every_stem_optimizer_rate_and_seed_is_planned_once(tmp_path: Path) -> None:
    planned = cifar10_evidence.planned(evidence_args(tmp_path))
    assert len({run.name for run in planned}) == len(planned) == 3 * 2 * 5 * 3
    assert {run.stem for run in planned[:3]} == set(models.STEMS)  # side by side


def test_the_twins_share_the_trunk_and_the_deeper_one_the_cost() -> None:
    counts = {stem: models.count(models.create(Settings(**models.twin_settings("vit_nano4_convstem", stem))))
              for stem in models.STEMS}  # fmt: skip
    assert [counts[stem]["parameters"] for stem in models.STEMS] == [544_426, 460_906, 535_690]
    cost = {stem: count["gmacs"] for stem, count in counts.items()}
    assert cost["patchify"] < 0.88 * cost["conv"]
    assert cost["patchify+1"] == pytest.approx(cost["conv"], rel=0.04)


def test_fused_attention_is_counted_like_any_other() -> None:
    model = models.create(Settings())
    counts = []
    for fused in (True, False):
        models.set_fused_attn(model, fused)
        counts.append(models.count(model)["gmacs"])
        assert {layer.fused_attn for layer in models.attentions(model)} == {fused}
    assert counts == [0.039569472] * 2  # with attention's own products, which are 12 % of it


def test_work_counts_epochs_sizes_and_attacks() -> None:
    gmacs = models.count(models.create(Settings()))["gmacs"]

    def work(done: int = 10, **changes: int) -> float:
        settings = asdict(Settings(epochs=10, **changes))
        return models.pflop({"settings": settings, "gmacs": gmacs, "epochs": [{}] * done})

    once = work()
    assert work(done=4) == pytest.approx(0.4 * once)
    assert once == pytest.approx(6e-6 * gmacs * 390 * 128 * 10)
    assert work(attack_steps=3) == pytest.approx(3 * once)
    smaller = work(small_epochs=5)
    assert 0.7 * once < smaller < 0.8 * once  # half of the epochs have 37 tokens instead of 65
    assert work(holdout=25_000) == pytest.approx(0.5 * once)


def test_claims_are_counted_by_seed(tmp_path: Path) -> None:
    args = evidence_args(tmp_path, "--seeds", "0", "1", "--rates", "adamw=1e-3,1e-2", "sgd=0.1,1")
    gain = {"conv": 10.0, "patchify": 0.0, "patchify+1": 12.0}
    for run in cifar10_evidence.planned(args):
        low = 5.0 * (run.rate in (1e-2, 1.0)) * (1 + (run.stem == "patchify")) + 3.0 * (run.optimizer == "sgd")
        curve = [40.0 + epoch * 10 + gain[run.stem] - low - run.seed for epoch in range(3)]
        keep(tmp_path, run.name, run.settings(args), curve)
    cifar10_evidence.main(["--data-dir", str(tmp_path), "--out", str(tmp_path), "--report"])
    text = (tmp_path / "results.txt").read_text(encoding="utf-8")
    twin, deeper = text.split("conv stem against patchify+1")
    assert re.search(r"adamw: accuracy at the best rate +10\.00 \+- 0\.00   2 of 2 seeds", twin)
    assert re.search(r"adamw: mean accuracy, over 2 rates +12\.50 \+- 0\.00   2 of 2 seeds", twin)
    assert re.search(r"adamw: smaller range, over 2 rates +5\.00 \+- 0\.00   2 of 2 seeds", twin)
    assert re.search(r"adamw: epochs sooner at the twin's final accuracy, of 3 +1\.00", twin)
    assert re.search(r"smaller gap from AdamW to SGD +0\.00 \+- 0\.00   0 of 2 seeds", twin)
    assert re.search(r"adamw: accuracy at the best rate +-2\.00 \+- 0\.00   0 of 2 seeds", deeper)
    assert re.search(r"sgd: epochs sooner at the twin's final accuracy, of 3 +-1\.00", deeper)
    assert "8.0 hours" not in text
    assert re.search(r"24\.0 hours of processor time and \d+\.\d PFLOP in 24 runs", text)
    assert text.endswith("machine 0; torch 9.9\nmachine 1; torch 9.9\n")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_a_claim_has_the_interval_of_its_mean() -> None:
    values = [1.0, 2.0, 3.0]
    assert seeds.interval(values) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert seeds.verdict("gain", dict(enumerate(values))).endswith("2.00 +- 1.00   3 of 3 seeds (95 %: -0.5 to 4.5)")
    assert seeds.verdict("gain", {0: 1.0}).endswith("1 of 1 seeds")


def test_a_machine_says_how_many_jobs_shared_it_only_where_that_is_known() -> None:
    alone, shared = (machine.environment(jobs)["machine"] for jobs in (None, 2))
    assert shared == f"{alone}, 2 jobs"


def test_the_report_of_nano4_has_the_work_and_how_far_a_stage_is(tmp_path: Path) -> None:
    keep(tmp_path, "teacher", nano4.TEACHER, [90.0] * nano4.TEACHER.epochs)
    under_way = training.Training(nano4.PLAIN, random_split(128))
    under_way.history = [{"seconds": 1800.0, "cpu_seconds": 3600.0}] * 3
    (tmp_path / "plain").mkdir()
    training.save(under_way, tmp_path / "plain")
    _, teacher, plain, *_ = nano4.report(tmp_path).splitlines()
    work = f"{models.pflop(runs.by_name(tmp_path)['teacher']):.2f}"
    assert teacher.split() == ["teacher", "12/12", "90.00", "1,000", "0.0400", work, "0.50", "1.00"]
    done = f"{models.pflop(under_way.record()):.2f}"
    assert plain.split() == ["plain", "3/92", "-", "544,426", "0.0396", done, "1.50", "3.00"]


@pytest.mark.full
def test_a_lost_run_is_a_result_and_is_not_tried_again(tmp_path: Path) -> None:
    split = random_split(20)
    for name in ("train", "validation"):
        torch.save(asdict(split), tmp_path / f"{name}.pt")
    kwargs = {"embed_dim": 24, "depth": 1, "stem_channels": (8, 16)}
    good = Settings(model_kwargs=kwargs, epochs=1, batch_size=10)
    lost = Settings(model_kwargs=kwargs, epochs=1, batch_size=10, opt="sgd", lr=1e30, warmup_epochs=0)
    where = sweep.Where(tmp_path, tmp_path)
    trainings = {"a-conv-sgd-1-0": good, "a-conv-sgd-2-0": lost}
    sweep.run_all(trainings, where)
    rows = runs.by_name(tmp_path)
    assert [sweep.DIVERGED in rows[name] for name in trainings] == [False, True]
    assert rows["a-conv-sgd-2-0"][sweep.DIVERGED].startswith("the loss became ")
    assert rows["a-conv-sgd-2-0"]["parameters"] == rows["a-conv-sgd-1-0"]["parameters"]
    found = cifar10_evidence.read_runs(tmp_path)
    assert found["a", "sgd", "conv", 2.0][0].accuracy == (10.0,)
    assert found["a", "sgd", "conv", 1.0][0].accuracy == (rows["a-conv-sgd-1-0"]["epochs"][0]["accuracy"],)
    assert "10.00 (1 lost)" in cifar10_evidence.to_text(found)
    sweep.run_all(trainings, where)
    assert len(runs.read_lines(tmp_path / runs.RUNS)) == 2
    with pytest.raises(ValueError, match=r"a-conv-sgd-1-0 was trained with lr 0.005, not 0.1: choose another --out"):
        sweep.run_all({"a-conv-sgd-1-0": Settings(model_kwargs=kwargs, epochs=1, batch_size=10, lr=0.1)}, where)


@pytest.mark.parametrize("stage", nano4.STAGES)
def test_the_stages_of_nano4_fit_the_goal(stage: str) -> None:
    settings = nano4.STAGES[stage]
    found = models.count(models.create(settings))
    assert settings.holdout == settings.train_images == settings.eval_interval == 0  # test images only once, at the end
    if stage != "teacher":
        assert found["parameters"] <= 600_000
        assert found["gmacs"] <= 0.05
        assert settings.model in timm.list_models("vit_nano4*")


def test_an_unfinished_table_compares_the_rates_that_both_have(tmp_path: Path) -> None:
    args = evidence_args(tmp_path, "--seeds", "0", "--rates", "adamw=1e-3,1e-2,1", "--optimizers", "adamw")
    for run in cifar10_evidence.planned(args):
        accuracy = {1e-3: 60.0, 1e-2: 55.0, 1: 10.0}[run.rate] + 5 * (run.stem == "conv")
        if run.stem == "conv" or run.rate < 1:
            keep(tmp_path, run.name, run.settings(args), [accuracy] * 3)
    text = cifar10_evidence.to_text(cifar10_evidence.read_runs(tmp_path))
    assert len(re.findall(r"adamw: smaller range, over 2 rates +0\.00 ", text)) == 2


def test_care_with_the_rate_has_three_measures() -> None:
    steep, flat = (60.0, 55.0, 20.0), (50.0, 48.0, 41.0)
    measures = cifar10_evidence.OVER_RATES.items()
    found = {name: [measure(finals) for finals in (steep, flat)] for name, measure in measures}
    assert [first > second for first, second in found.values()] == [False, False, False]
    assert found["smaller range"] == [-40.0, -9.0]
    assert found["rates less than 10 points below the best"] == [2, 3]


def test_levers_are_judged_on_held_out_images_and_compared_by_seed(tmp_path: Path) -> None:
    planned = nano4.lever_runs()
    assert all(settings.holdout for settings in planned.values())
    for name, settings in planned.items():
        better = 2.0 if name.startswith("batch_64") else 0.0
        keep(tmp_path, name, settings, [30.0, 40.0, 50.0 + settings.seed + better])
    keep(tmp_path, "float32-0", planned["float32-0"], [], diverged="the loss became nan")  # the last line counts
    text = nano4.report(tmp_path)
    assert re.search(r"float32 +51\.00 +0\.00 +3600", text)  # only seed 1
    assert re.search(r"as it is +50\.50 \+- 0\.71 +0\.00 \+- 0\.00 +3600", text)
    assert re.search(r"batch 64 +52\.50 \+- 0\.71 +2\.00 \+- 0\.00 +3600", text)
    assert len(text.splitlines()) == 2 + len(nano4.LEVERS) + len(nano4.SEEDS)  # one machine per seed
