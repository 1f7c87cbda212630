"""The gain of a transplant: starts match their names, budgets are equal, and a killed sweep resumes."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from experiments import transplant_gain, transplant_gain_report
from experiments.cifar10.data import MEAN, STD, normalise
from experiments.cifar10.settings import Settings
from experiments.cifar10.training import Training, save
from experiments.transplant_gain import load_source, start_model
from experiments.transplant_gain_report import STARTS, Job, Result
from tests.experiments.test_cifar10 import random_split

SOURCE = Settings(
    model="vit_tiny_patch16_224", batch_size=10, epochs=1,
    model_kwargs={"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3},
)  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a finished training of a tiny patchify model, and its images."""
    for name in ("train", "validation"):
        torch.save(asdict(random_split(80)), tmp_path / f"{name}.pt")
    training = Training(SOURCE, random_split(40))
    (tmp_path / "source").mkdir()
    save(training, tmp_path / "source")
    return tmp_path / "source"


def test_a_transplant_starts_as_its_source_and_a_new_stem_does_not(source: Path) -> None:
    images = normalise(random_split(4).images)
    model = load_source(source, "cpu")
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == (MEAN, STD)  # a transplant needs them
    starts = {start: start_model(Job(start, "all", "sgd", 8, "steps", 0), model).eval()
              for start in STARTS}  # fmt: skip
    assert not torch.allclose(starts["new stem"](images), model(images), atol=1e-3)
    shapes = [{name: tensor.shape for name, tensor in starts[start].state_dict().items()} for start in starts]
    assert shapes[1] == shapes[2] != shapes[0]
    torch.testing.assert_close(starts["transplant"](images), model(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(starts["patchify"](images), model(images))


def test_a_frozen_trunk_does_not_train(source: Path) -> None:
    model = load_source(source, "cpu")
    for start in STARTS:
        found = start_model(Job(start, "stem and head", "sgd", 8, "steps", 0), model)
        trained = {name.split(".")[0] for name, parameter in found.named_parameters() if parameter.requires_grad}
        assert trained == {"patch_embed", "head"}


def test_equal_time_takes_fewer_steps_of_a_slower_model(tmp_path: Path) -> None:
    args = transplant_gain.parse_args(
        ["--data-dir", str(tmp_path), "--out", str(tmp_path), "--source", str(tmp_path), "--steps", "100"]
    )
    ratios = {"all, 128": 1.25, "all, 8": 2.0}
    steps = {(start, batch, budget): transplant_gain.steps_of(Job(start, "all", "sgd", batch, budget, 0), args, ratios)
             for start in ("patchify", "transplant") for batch in (128, 8) for budget in ("steps", "time")}  # fmt: skip
    assert steps["transplant", 128, "steps"] == steps["patchify", 128, "steps"] == 100
    assert steps["transplant", 128, "time"] == 80
    assert (steps["patchify", 8, "steps"], steps["transplant", 8, "time"]) == (400, 200)
    jobs = transplant_gain.planned(args)
    assert len(jobs) == len(set(jobs)) == 2 * 2 * 2 * 3 * 4  # three starts, and the transplant in equal time


def test_gains_are_paired_by_seed_and_what_is_done_is_read_again(tmp_path: Path) -> None:
    done = {
        Job(start, "all", "sgd", 8, "steps", seed): Result(80.0 + 5 * seed + gain, 0.5, 10, 3.0)
        for start, gain in {"patchify": 0.0, "transplant": 1.0}.items() for seed in (0, 1)
    }  # fmt: skip
    for job, result in done.items():
        transplant_gain_report.append_result(tmp_path, job, result)
    assert transplant_gain_report.read_results(tmp_path) == done
    transplant_gain_report.plot(done, tmp_path / "gain.png")
    assert (tmp_path / "gain.png").stat().st_size > 0
    _, patchify, transplanted = transplant_gain_report.table(done)
    assert "82.50 +- 3.54" in patchify
    assert "83.50 +- 3.54    1.00 +- 0.00" in transplanted


def test_the_work_counts_a_frozen_trunk_as_two_passes() -> None:
    whole, frozen = (Job("patchify", scope, "sgd", 10, "steps", 0) for scope in transplant_gain.SCOPES)
    works = [
        transplant_gain_report.pflop({job: Result(80.0, 0.5, 1000, 9.0)}, {"patchify": 0.5}) for job in (whole, frozen)
    ]
    assert works == pytest.approx([3e-2, 2e-2])


def test_a_folder_of_other_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data-dir", str(tmp_path), "--out", str(tmp_path), "--source", str(tmp_path), "--device", "cpu"]
    settings = {"source": tmp_path.name, "size": 0, "steps": 390, "images": 0, "batches": [128, 8], "layer_decay": 0.0}
    settings["rates"] = {"adamw": 1e-3, "sgd": 0.02}
    (tmp_path / transplant_gain_report.CONDITIONS).write_text(json.dumps({"settings": settings}), encoding="utf-8")
    assert transplant_gain.conditions(transplant_gain.parse_args(where))["settings"] == settings
    assert transplant_gain.main([*where, "--bfloat16", "--steps", "60"]) == 1
    assert re.search(
        r"begun with amp None, not True; .*steps 390, not 60: choose another --out", capsys.readouterr().err
    )


def test_too_few_images_are_an_error_before_anything_is_measured(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = source.parent / "out"
    where = ["--data-dir", str(source.parent), "--out", str(out), "--source", str(source), "--device", "cpu"]
    assert transplant_gain.main([*where, "--steps", "2", "--images", "70", "--batches", "128"]) == 1
    assert "70 images do not fill 2 batches of 128: take fewer steps" in capsys.readouterr().err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["nothing", "train.pt"])
def test_a_source_that_is_no_training_is_refused(source: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data-dir", str(source.parent), "--out", str(source.parent / "out"), "--device", "cpu"]
    path = source.parent / name
    assert transplant_gain.main([*where, "--source", str(path), "--steps", "2", "--batches", "8"]) == 1
    assert f"expected the folder of a training with last.pth.tar; got {path}: train a source" in capsys.readouterr().err


def test_each_model_has_the_better_of_two_folders_rates(tmp_path: Path) -> None:
    accuracy = {"a": {"patchify": 60.0, "transplant": 70.0}, "b": {"patchify": 71.0, "transplant": 69.0}}
    for folder, means in accuracy.items():
        done = {Job(start, "all", "sgd", 8, "steps", seed): Result(mean + seed, 1.0, 9, 1.0)
                for start, mean in means.items() for seed in (0, 1)}  # fmt: skip
        for job, result in done.items():
            transplant_gain_report.append_result(tmp_path / folder, job, result)
        [(_, _, gains)] = [group for group in transplant_gain_report.groups(done) if group[2]]
        assert list(gains.values()) == [means["transplant"] - means["patchify"]] * 2
    _, row = transplant_gain_report.at_the_better(tmp_path / "a", tmp_path / "b")
    assert row.split() == ["sgd", "8", "all", "transplant", "steps", *["70.50", "+-", "0.71", "-1.00", "+-", "0.00"]]


@pytest.mark.full
def test_the_script_trains_goes_on_and_reports(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "out"
    where = ["--data-dir", str(source.parent), "--out", str(out), "--source", str(source), "--device", "cpu"]
    call = [*where, "--steps", "2", "--batches", "8", "--seeds", "0"]
    transplant_gain.main(call)
    once = capsys.readouterr().out
    lines = (out / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * 2 * 4
    (out / "runs.jsonl").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")  # the last one was killed
    assert transplant_gain.main(call) == 0
    assert (out / transplant_gain_report.PICTURE).exists()
    first, second = (re.sub(r" +\d+$", "", text, flags=re.M) for text in (once, capsys.readouterr().out))  # drop times
    assert first == second
