"""Beyond one process, with torch's own tools: DistributedDataParallel, FSDP2 and torch.distributed.checkpoint.

Two processes are started once (distributed_worker.py) and compared here with one process on the whole batch.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from tests.support.distributed_worker import batch, create, create_optimizer, gradients, step
from tests.support.script_runs import TWO_PROCESSES, largest_gap

pytestmark = pytest.mark.full

WORKER = Path(__file__).parents[1] / "support" / "distributed_worker.py"
DEVICE = "cuda" if torch.cuda.device_count() > 1 else "cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two processes, on two GPUs if present, and return their output folder."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, *TWO_PROCESSES["launcher"], str(WORKER), str(folder), DEVICE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "results.pt")


def whole_batch_gradients(norm: str) -> dict[str, Tensor]:
    model = create(norm)
    step(model, *batch())
    return gradients(model)


def test_with_batchnorm_two_processes_compute_another_gradient_than_one(results: dict[str, Any]) -> None:
    """Each process normalizes by its own half. This is also the negative control of the next test."""
    assert largest_gap(results["gradients"]["batchnorm2d"], whole_batch_gradients("batchnorm2d")) > 1e-3


@pytest.mark.parametrize("norm", ["frozen_bn", "layernorm2d"])
def test_without_batch_statistics_two_processes_compute_the_gradient_of_one(results: dict[str, Any], norm: str) -> None:
    assert largest_gap(results["gradients"][norm], whole_batch_gradients(norm)) < 1e-5


def test_sync_bn_computes_the_gradient_of_one_process_where_torch_has_it(results: dict[str, Any]) -> None:
    if DEVICE == "cpu":
        assert "SyncBatchNorm layers only work with GPU modules" in results["sync_bn"]
    else:
        assert largest_gap(results["gradients"]["sync"], whole_batch_gradients("batchnorm2d")) < 1e-4


def test_ddp_gives_every_process_the_buffers_of_the_first(results: dict[str, Any]) -> None:
    """The default of torchvision's and timm's train.py; with timm's --no-ddp-bb each process keeps its own."""
    seen = results["broadcast"]
    assert (seen[False] == 1).all()
    assert (seen[True] == 0).all()


def test_dist_bn_reduce_averages_the_buffers(results: dict[str, Any]) -> None:
    assert (results["reduced"] == 0.5).all()


def test_fsdp_shards_the_model(results: dict[str, Any]) -> None:
    total = sum(parameter.numel() for parameter in create("frozen_bn").parameters())
    assert 0.45 * total < results["fsdp_values"] < 0.55 * total


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_sharded_checkpoint_goes_on_in_one_process(folder: Path) -> None:
    """Saved by two processes, loaded by one: weights and moments equal those of a single-process training."""
    alone = create("frozen_bn")
    optimizer = create_optimizer(alone)
    step(alone, *batch(), optimizer)

    loaded = create("frozen_bn", seed=1)
    new_optimizer = create_optimizer(loaded)
    assert largest_gap(dict(loaded.state_dict()), dict(alone.state_dict())) > 0.01
    weights, moments = get_state_dict(loaded, new_optimizer)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=folder / "dcp", no_dist=True)  # type: ignore[attr-defined]
    set_state_dict(loaded, new_optimizer, model_state_dict=weights, optim_state_dict=moments)
    assert largest_gap(dict(loaded.state_dict()), dict(alone.state_dict())) < 1e-5

    for model, its_optimizer in ((alone, optimizer), (loaded, new_optimizer)):
        step(model, *batch(), its_optimizer)
    assert largest_gap(dict(loaded.state_dict()), dict(alone.state_dict())) < 1e-5
