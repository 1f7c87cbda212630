"""The dense evidence: encoders match their names, runs are planned once, a report reads them back."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from experiments import dense_evidence
from experiments.dense_evidence import reached
from experiments.dense_evidence_arms import ARMS, DECODERS, Centred, Sources
from experiments.pyramid_evidence_data import Task
from experiments.runs import by_name

COARSEST = {"upsampled": 8, "stride 8": 8, "not moved": 8, "enlarged": 8}
"""Arm -> stride of its coarsest map, if not 16."""


class SmallSources(Sources):
    """A small random ViT in place of the pretrained one."""

    def plain(self) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=64, dynamic_img_size=True, embed_dim=48, num_heads=3, num_classes=0
        ).eval()


SOURCES = SmallSources(Path("none"))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arm", ARMS)
@torch.no_grad()
def test_every_arm_gives_maps_that_both_decoders_take_to_the_images_size(arm: str, images: Tensor) -> None:
    maps = ARMS[arm](SOURCES, 0).eval()(images)
    stride = COARSEST.get(arm, 16)
    for level, part in enumerate(maps):
        assert part is None or part.shape[-2:] == (64 * 2**level // stride, 96 * 2**level // stride)
    assert stride == 2 ** len(maps)
    for make in DECODERS.values():
        assert make(maps, 3)(maps).shape == (2, 3, 64, 96)


@torch.no_grad()
def test_the_tokens_are_the_plain_vits_unless_the_stem_is_random(images: Tensor) -> None:
    plain, random, stem, beside = (
        ARMS[arm](SOURCES, 0).eval()(images) for arm in ("stride 16", "random stem", "stem maps", "random maps")
    )
    assert not torch.allclose(random[0], plain[0], atol=1e-2)
    torch.testing.assert_close(stem[0], plain[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(beside[0], plain[0])
    assert not torch.allclose(stem[-1], beside[-1], atol=1e-2)
    torch.testing.assert_close(random[-1], beside[-1])  # the same random stem, in place and beside


@torch.no_grad()
def test_another_seed_is_another_random_stem(images: Tensor) -> None:
    one, other, again = (ARMS["random maps"](SOURCES, seed).eval()(images)[-1] for seed in (0, 1, 0))
    assert not torch.allclose(one, other, atol=1e-2)
    assert torch.equal(one, again)


def test_what_is_random_has_a_rate_of_its_own() -> None:
    for arm, groups in {"stem maps": 1, "four blocks": 1, "fast stem": 2, "random stem": 2, "random maps": 2}.items():
        encoder = ARMS[arm](SOURCES, 0)
        found: list[dict[str, Any]] = encoder.groups(1e-5, 1e-3)
        assert [group["lr"] for group in found] == [1e-5, 1e-3][:groups]
        members = [parameter for group in found for parameter in group["params"]]
        assert len(members) == len({id(p) for p in members}) == len(list(encoder.parameters()))


def test_a_moved_image_puts_its_tokens_where_they_look() -> None:
    class Means(nn.Module):  # tokens of 16 pixels at stride 8 see these
        def forward(self, x: Tensor) -> list[Tensor]:
            return [nn.functional.avg_pool2d(nn.functional.pad(x, (0, 8, 0, 8)), 16, 8)]

    ramp = torch.arange(64.0).expand(1, 3, 64, 64)
    centres = torch.arange(4.0, 64, 8) - 0.5
    inside = slice(1, -1)  # without the zero border
    as_it_is, moved = (body(ramp)[0][0, 0, 4, inside] for body in (Means(), Centred(Means())))
    torch.testing.assert_close(as_it_is[:-1], centres[inside][:-1] + 4)
    torch.testing.assert_close(moved, centres[inside])


def test_every_run_is_planned_once_and_whole_models_seed_by_seed() -> None:
    planned = list(dense_evidence.plan([0, 1, 2]))
    assert len(planned) == len({*planned}) == 2 * 7 * 2 * 3 + 2 * 5 * 3
    assert [seed for kind, *_, seed in planned if kind == "whole"] == [0] * 10 + [1] * 10 + [2] * 10


def task_of(images: Tensor) -> Task:
    truth = (images[:, 0] > 0.5).long()
    return Task("nuclei", 2, (images, truth), (images, truth), shown=0)


def arguments(out: Path, *more: str) -> argparse.Namespace:
    return dense_evidence.parse_args(["none", "--out", str(out), "--wheels", str(out), "--seeds", "0", *more])


@pytest.mark.full
def test_runs_that_are_done_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    small = {"steps": 2, "batch": 1, "side": 64}
    monkeypatch.setattr(dense_evidence, "load", lambda *_: task_of(images[..., :64]))
    monkeypatch.setattr(dense_evidence, "Sources", SmallSources)
    monkeypatch.setattr(dense_evidence, "WHOLE", small)
    monkeypatch.setattr(dense_evidence, "LOOK_EVERY", 1)
    monkeypatch.setattr(dense_evidence, "TASKS", ("nuclei",))
    monkeypatch.setattr(dense_evidence, "WHOLE_ARMS", ("stem maps", "random maps"))
    monkeypatch.setattr(dense_evidence, "FROZEN_ARMS", ("stride 16", "stride 8"))
    monkeypatch.setattr("experiments.pyramid_evidence.FROZEN", small)
    monkeypatch.setattr(dense_evidence, "SIZE", 64)
    dense_evidence.run_all(arguments(tmp_path, "--kinds", "frozen"))
    assert len(by_name(tmp_path)) == 2 * 2
    dense_evidence.run_all(arguments(tmp_path, "--bfloat16"))
    kept: dict[str, Any] = by_name(tmp_path)
    assert len(kept) == 2 * 2 + 2
    assert [point["step"] for point in kept["whole-nuclei-stem_maps-decoder-0"]["curve"]] == [1, 2]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a run that is done")

    monkeypatch.setattr(dense_evidence, "frozen", never)
    with pytest.raises(AssertionError):
        dense_evidence.run_all(arguments(tmp_path, "--seeds", "1"))
    dense_evidence.run_all(arguments(tmp_path))
    text = dense_evidence.to_text(tmp_path)
    assert all(arm in text for arm in ("stride 16", "stride 8", "stem maps", "random maps"))


def test_epochs_to_a_level_are_those_of_the_first_look() -> None:
    curve = [{"step": step, "mIoU": value} for step, value in ((20, 50.0), (40, 71.0), (60, 69.0), (80, 75.0))]
    row = {"images": 32, "curve": curve}
    assert reached(row, 70) == 40 * dense_evidence.WHOLE["batch"] / 32
    assert reached(row, 80) is None
    assert dense_evidence.epochs_to({0: row, 1: {**row, "curve": curve[:1]}}, 70) == "never in 1 of 2"
    assert dense_evidence.epochs_to({0: row, 1: row}, 70) == "5.0"
