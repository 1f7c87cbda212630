"""Attacks stay within their radius and hurt; the script trains, attacks and reports."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy

from experiments import robustness
from experiments.cifar10 import models
from experiments.cifar10.attack import perturb
from experiments.cifar10.data import STD, Split, normalise
from experiments.cifar10.settings import Settings
from experiments.cifar10.training import Training
from tests.experiments.test_cifar10 import random_split
from tests.experiments.test_evidence import keep

TINY = Settings(model_kwargs={"embed_dim": 24, "depth": 1, "stem_channels": (8, 16)}, batch_size=10)


def flat_split(count: int) -> Split:
    """Return images whose class is their brightness, so that a few steps learn it."""
    labels = torch.arange(count) % 10
    return Split((25 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous(), labels)


def test_an_attack_stays_within_its_radius_and_raises_the_loss() -> None:
    model, images = models.create(TINY).train(), normalise(random_split(10).images)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss, targets = SoftTargetCrossEntropy(), torch.eye(10)
    moved = perturb(model, images, targets, loss, radius=4, steps=3)
    reach = 4 / 255 / torch.tensor(STD).view(3, 1, 1)
    assert 0.5 < float(((moved - images) / reach).abs().max()) <= 1 + 1e-5
    pixels = (moved - normalise(torch.zeros_like(images))) * torch.tensor(STD).view(3, 1, 1)
    assert -1e-6 < float(pixels.min()) < float(pixels.max()) < 1 + 1e-6
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    assert loss(model(moved), targets) > loss(model(images), targets)


def test_adversarial_training_is_another_training() -> None:
    split = random_split(20)
    losses = [Training(settings, split).run_epoch(0)["loss"] for settings in (TINY, Settings(**asdict(TINY) | {
        "attack_steps": 2}))]  # fmt: skip
    assert losses[0] != losses[1]


@pytest.mark.full
def test_pgd_lowers_the_accuracy_of_a_model_that_has_learned() -> None:
    pytest.importorskip("art")
    settings = Settings(**asdict(TINY) | {"lr": 2e-2, "epochs": 30, "crop": 0, "warmup_epochs": 0})
    split = flat_split(40)
    training = Training(settings, split)
    for epoch in range(settings.epochs):
        training.run_epoch(epoch)
    target = robustness.classifier(training.model, "cpu")
    clean = robustness.attacked_accuracy(target, None, split.images, split.labels)
    attacked = robustness.attacked_accuracy(
        target, robustness.attacks(target, 16.0, 10)["PGD-50"], split.images, split.labels
    )
    right = training.model.eval()(normalise(split.images)).argmax(1) == split.labels
    assert clean == pytest.approx(100 * float(right.double().mean()))
    assert clean > 60
    assert attacked < clean - 20


@pytest.mark.full
def test_the_script_trains_attacks_goes_on_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("art")
    for name in ("train", "validation"):
        torch.save(asdict(random_split(20)), tmp_path / f"{name}.pt")
    where = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu", "--epochs", "1"]
    call = [*where, "--batch-size", "10", "--attack-steps", "1", "--attacked", "10", "--autoattacked", "2"]
    call += ["--square-iterations", "20"]
    robustness.main([*call, "--seeds", "0"])
    once = capsys.readouterr().out
    robustness.main([*call, "--seeds", "0"])
    assert capsys.readouterr().out == once
    with pytest.raises(ValueError, match=r"out was attacked with AutoAttack 2, not 3: choose another --out"):
        robustness.main([*call, "--seeds", "0", "1", "--autoattacked", "3"])
    assert not (tmp_path / "out" / "runs" / "conv-1").exists()
    assert "PGD-50 on 10, AutoAttack on 2 images; Square's iterations: 20" in once
    assert "of 1 seeds" in once
    assert once.count("AutoAttack, against patchify") == 2
    assert (tmp_path / "out" / robustness.PICTURE).stat().st_size > 0


def test_the_report_pairs_stems_by_seed(tmp_path: Path) -> None:
    assert robustness.to_text(*robustness.read_runs(tmp_path)) == "no run has finished yet\n"
    counts = dict.fromkeys((*robustness.ATTACKS, robustness.SQUARE), 100)
    for stem, base in {"patchify": 30.0, "conv": 40.0}.items():
        for seed in (0, 1):
            figures = dict.fromkeys(robustness.ATTACKS, base + (5 * seed if stem == "conv" else 0))
            keep(tmp_path, f"{stem}-{seed}", TINY, [base], counts=counts, figures=figures)
    keep(tmp_path, "conv-2", TINY, [], diverged="the loss became nan")  # was not attacked
    text = robustness.to_text(*robustness.read_runs(tmp_path))
    assert re.search(r"^conv +2 .*\npatchify +2 ", text, re.M)
    assert re.search(r"PGD-50, against patchify +12\.50 \+- 3\.54   2 of 2 seeds", text)
    assert "against patchify+1" not in text
    assert "2.0 hours" not in text
    assert "4.0 hours" in text
    keep(tmp_path, "patchify-2", TINY, [30.0], counts={**counts, "AutoAttack": 50}, figures=figures)
    with pytest.raises(ValueError, match=r"the same attacks; patchify-2 has .*'AutoAttack': 50.*, others have"):
        robustness.read_runs(tmp_path)
