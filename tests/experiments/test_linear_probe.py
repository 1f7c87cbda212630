"""The linear probe: its head learns, its trunk stays fixed, and its output is a source for transplant_gain."""

from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from experiments import linear_probe
from experiments.cifar10 import data, models
from experiments.cifar10.data import normalise
from experiments.transplant_gain import load_source
from tests.experiments.test_cifar10 import random_split
from tools.dinov2_vit_small import ARCHITECTURE, PATCH


def test_a_head_learns_what_is_linear() -> None:
    torch.manual_seed(0)
    labels = torch.arange(200) % 10
    features = nn.functional.one_hot(labels, 10).float() @ torch.randn(10, 16) + 0.1 * torch.randn(200, 16)
    head = nn.Linear(16, 10)
    accuracies = [(head(features).argmax(1) == labels).float().mean()]
    linear_probe.fit(head, features, labels)
    accuracies.append((head(features).argmax(1) == labels).float().mean())
    assert accuracies[0] < 0.5
    assert accuracies[1] == 1


def test_a_probe_is_a_source_whose_trunk_is_the_pretrained_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    pretrained = timm.create_model(ARCHITECTURE, num_classes=0, img_size=64, patch_size=PATCH, depth=1).eval()
    monkeypatch.setattr(linear_probe, "load_patch16", lambda path: pretrained)
    monkeypatch.setitem(models.CFG, "depth", 1)
    for name in ("train", "validation"):
        torch.save(asdict(random_split(40)), tmp_path / f"{name}.pt")
    where = ["--data-dir", str(tmp_path), "--weights", "none", "--out", str(tmp_path / "source"), "--device", "cpu"]
    linear_probe.main([*where, "--images", "20"])
    assert "% of the images it was fitted on" in capsys.readouterr().out
    source = load_source(tmp_path / "source", "cpu")
    images = data.resize(normalise(random_split(4).images), 64)
    found, expected = source.forward_features(images), pretrained.forward_features(images)
    pretrained.init_weights()
    assert not torch.allclose(found, pretrained.forward_features(images), atol=1e-2)
    torch.testing.assert_close(found, expected)


def test_missing_weights_are_named_with_what_writes_them(tmp_path: Path) -> None:
    weights = tmp_path / "vit.safetensors"
    where = ["--data-dir", str(tmp_path), "--weights", str(weights), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=f"{weights} is no file; write it: python -m tools.dinov2_vit_small {weights}"):
        linear_probe.main(where)
