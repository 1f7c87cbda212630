"""More pixels for the same tokens: all arms start as the same function, and every run is planned once."""

import pytest
import timm
import torch
from torch import Tensor, nn

from experiments import more_pixels
from experiments.cifar10.data import MEAN, STD
from experiments.more_pixels import figures, plan, start_model

RATIOS = {"source": 1.0, "stride 4": 1.04, "averages": 1.0, "kernel 4": 1.0, "patch 2": 6.3}


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(more_pixels.SOURCE.model, num_classes=10, **more_pixels.SOURCE.model_kwargs)
    nn.init.normal_(model.head.weight)
    model.pretrained_cfg.update(mean=MEAN, std=STD)
    return model.eval()


@pytest.mark.parametrize("arm", ["patch 2", "stride 4", "averages", "kernel 4"])
@torch.no_grad()
def test_arms_with_as_many_tokens_begin_as_the_source_on_averages(arm: str, source: nn.Module) -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    wanted: Tensor = source(nn.functional.avg_pool2d(images, 2))
    same = torch.allclose(start_model(arm, source).eval()(images), wanted, atol=1e-4)
    assert same == (arm != "patch 2")


def test_every_run_is_planned_once_and_the_dear_ones_last() -> None:
    runs = plan([0, 1, 2], RATIOS)
    assert len(runs) == len({*runs}) == 3 * 6
    assert runs[-3:] == [("steps", "patch 2", seed) for seed in range(3)]
    assert {arm for budget, arm, _ in runs if budget == "time"} == {"patch 2"}
    assert len(plan([0], dict.fromkeys(RATIOS, 2.0) | {"source": 1.0})) == 9


def test_an_arm_without_runs_of_equal_time_has_those_of_equal_steps() -> None:
    rows = [("steps", "source", 50.0), ("steps", "patch 2", 60.0), ("time", "patch 2", 55.0)]
    runs = [{"budget": budget, "arm": arm, "accuracy": value, "seed": 0} for budget, arm, value in rows]
    assert figures(runs, "steps")["patch 2"] == {0: 60.0}
    assert figures(runs, "time")["patch 2"] == {0: 55.0}
    assert figures(runs, "time")["source"] == figures(runs, "steps")["source"] == {0: 50.0}
    assert figures(runs, "time")["stride 4"] == {}
