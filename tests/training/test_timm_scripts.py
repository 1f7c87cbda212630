"""timm's own scripts, unmodified, run on our names; their claims are checked against their output files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import load_state_dict
from torch import Tensor
from torchvision.datasets import ImageFolder

from tests.support.script_runs import NAME, TWO_PROCESSES, Run, Scripts, largest_gap, read_checkpoint, train

pytestmark = pytest.mark.full

FIRST = "patch_embed.backbone.0.conv.weight"
MEAN = "patch_embed.backbone.0.bn.running_mean"
TRACKED = "patch_embed.backbone.0.bn.num_batches_tracked"


@pytest.fixture(scope="module")
def plain(timm_scripts: Scripts) -> Run:
    """Four epochs from scratch, with a checkpoint after each."""
    return train(timm_scripts, "plain", "--model-ema", "--model-ema-decay", "0.9", "--batch-size", 40, epochs=4)


@pytest.fixture(scope="module")
def short(timm_scripts: Scripts) -> Run:
    """One epoch without any of the flags below."""
    return train(timm_scripts, "short")


def test_training_from_scratch_lowers_the_loss(plain: Any) -> None:
    losses = [float(row["train_loss"]) for row in plain.summary]
    assert losses[-1] < losses[0] - 0.2


# Each row: flags, and the effect that they must have; a run without them must not have it.
FLAGS = {
    "stem_channels": (["--model-kwargs", "stem_channels=[32,64]"], lambda run: run.weights[FIRST].shape[0] == 32),
    "frozen_bn": (["--model-kwargs", "stem_norm=frozen_bn"], lambda run: TRACKED not in run.weights),
    "layer_decay": (["--layer-decay", "0.75"], lambda run: min(run.lr_scales) == pytest.approx(0.75**7, rel=1e-3)),
    "model_ema": (["--model-ema"], lambda run: run.checkpoint.get("state_dict_ema", {}).keys() == run.weights.keys()),
    "amp": (["--amp", "--amp-dtype", "bfloat16"], lambda run: "Training in mixed precision" in run.log),
    "channels_last": (["--channels-last"], lambda run: run.weights[FIRST].stride()[1] == 1),
    "in_chans": (["--in-chans", "1", "--input-size", "1", "32", "32"], lambda run: run.weights[FIRST].shape[1] == 1),
    "num_classes": (["--num-classes", "12"], lambda run: run.weights["head.weight"].shape[0] == 12),
    "head_init_scale": (["--head-init-scale", "0"], lambda run: run.weights["head.weight"].abs().max() < 0.01),
    "mixup_cutmix": (["--mixup", "0.8", "--cutmix", "1.0"], lambda run: run.checkpoint["args"].mixup > 0),
    "torchcompile": (["--torchcompile"], lambda run: "backend=inductor" in run.log and FIRST in run.weights),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_of_train_py_takes_effect(timm_scripts: Scripts, short: Run, name: str) -> None:
    flags, took_effect = FLAGS[name]
    assert not took_effect(short)
    run = train(timm_scripts, name, *flags)
    assert took_effect(run)
    assert all(torch.isfinite(tensor).all() for tensor in run.weights.values())


CPU_DDP = ("--device-modules", "cpu_ddp")

SGD = ("--opt", "sgd", "--lr", "0.1")
"""SGD because Adam turns the rounding error of a zero gradient into a full step."""


@pytest.fixture(scope="module")
def sgd(timm_scripts: Scripts) -> dict[str, Tensor]:
    return train(timm_scripts, "sgd", *SGD).weights


@pytest.mark.parametrize("flag", ["--grad-checkpointing", "--channels-last"])
def test_how_it_computes_does_not_change_what_it_learns(timm_scripts: Scripts, sgd: Any, flag: str) -> None:
    """Recomputed blocks and another memory format give the same weights, and batch statistics are counted once."""
    assert largest_gap(sgd, train(timm_scripts, "seed", *SGD, "--seed", "1").weights) > 0.01
    assert largest_gap(sgd, train(timm_scripts, f"same{flag}", *SGD, flag).weights) < 1e-5


def test_pretrained_starts_from_the_embedded_weights(timm_scripts: Scripts, short: Run) -> None:
    expected = timm.create_model(NAME, pretrained=True).state_dict()
    still = ["--opt", "sgd", "--lr", "1e-12", "--model-kwargs", "stem_norm=frozen_bn"]
    started = train(timm_scripts, "pretrained", "--pretrained", *still).weights
    kept = {key: expected[key] for key in started}
    assert largest_gap({key: short.weights[key] for key in started}, kept) > 0.1
    assert largest_gap(started, kept) < 1e-6


def test_pretrained_takes_another_number_of_classes_and_channels(timm_scripts: Scripts) -> None:
    flags = ["--num-classes", "12", "--in-chans", "1", "--input-size", "1", "32", "32"]
    weights = train(timm_scripts, "adapted", "--pretrained", "--opt", "sgd", "--lr", "1e-12", *flags).weights
    expected = timm.create_model(NAME, pretrained=True).state_dict()
    assert weights["head.weight"].shape[0] == 12
    assert torch.allclose(weights[FIRST], expected[FIRST].sum(1, keepdim=True), atol=1e-6)
    assert torch.allclose(weights["blocks.5.mlp.fc2.weight"], expected["blocks.5.mlp.fc2.weight"], atol=1e-6)


def test_resume_goes_on_to_the_same_state(
    timm_scripts: Scripts, plain: Any, figure: Callable[[str, object], None]
) -> None:
    """Weights, BatchNorm buffers, EMA and optimizer moments. One batch an epoch, since train.py saves no RNG state."""
    halfway = read_checkpoint(plain.folder / "checkpoint-1.pth.tar")
    flags = ["--model-ema", "--model-ema-decay", "0.9", "--batch-size", 40]
    start = ["--resume", plain.folder / "checkpoint-1.pth.tar"]
    resumed = train(timm_scripts, "resumed", *flags, *start, epochs=4).checkpoint
    for part in ("state_dict", "state_dict_ema"):
        assert largest_gap(halfway[part], plain.checkpoint[part]) > 1e-3
        gap = largest_gap(resumed[part], plain.checkpoint[part])
        figure(f"gap of {part}", f"{gap:.1e}")
        assert gap < 1e-5
    assert largest_gap(resumed["optimizer"]["state"], plain.checkpoint["optimizer"]["state"]) < 1e-5


def test_two_processes_resume_to_the_same_bits(timm_scripts: Scripts) -> None:
    """With several processes timm's sampler shuffles by epoch number, so several batches can be compared."""
    flags = [*CPU_DDP, "--batch-size", "5", "--dist-bn", "reduce"]
    whole = train(timm_scripts, "whole", *flags, epochs=2, **TWO_PROCESSES)
    assert "Distributing BatchNorm running means and vars" in whole.log
    start = whole.folder / "checkpoint-0.pth.tar"
    assert largest_gap(read_checkpoint(start)["state_dict"], whole.weights) > 1e-3
    resumed = train(timm_scripts, "resumed2", *flags, "--resume", start, epochs=2, **TWO_PROCESSES)
    assert largest_gap(resumed.weights, whole.weights) == 0
    assert largest_gap(resumed.checkpoint["optimizer"]["state"], whole.checkpoint["optimizer"]["state"]) == 0


def test_sync_bn_converts_the_stem_and_says_that_it_needs_an_accelerator(timm_scripts: Scripts) -> None:
    """torch has no SyncBatchNorm for CPUs: DistributedDataParallel says so before the first step."""
    run = train(timm_scripts, "sync", *CPU_DDP, "--sync-bn", **TWO_PROCESSES, fails=True)
    assert "Converted model to use Synchronized BatchNorm" in run.log
    assert "SyncBatchNorm layers only work with GPU modules" in run.log
    assert not list(run.folder.glob("*.pth.tar"))


def result_of(log: str) -> dict[str, Any]:
    """Return the JSON that a timm script prints at its end."""
    return json.loads(log.split("--result")[1].split("\n}")[0] + "}")


@pytest.mark.parametrize("epoch", [0, 3])
def test_validate_py_agrees_with_train_py(
    timm_scripts: Scripts, plain: Any, epoch: int, figure: Callable[[str, object], None]
) -> None:
    losses = [float(row["eval_loss"]) for row in plain.summary]
    assert abs(losses[0] - losses[3]) > 0.01
    where = ["--data-dir", timm_scripts.images, "--model", NAME, "--device", "cpu", "--workers", "1", "--use-ema"]
    log = timm_scripts.run("validate.py", *where, "--checkpoint", plain.folder / f"checkpoint-{epoch}.pth.tar")
    figure("top-1", f"{result_of(log)['top1']}, train.py said {plain.summary[epoch]['eval_top1']}")
    assert result_of(log)["top1"] == pytest.approx(float(plain.summary[epoch]["eval_top1"]), abs=1e-3)
    assert float(re.search(r"Loss: +[\d.]+ \(([\d.]+)\)", log)[1]) == pytest.approx(losses[epoch], abs=1e-3)


def test_inference_py_predicts_what_the_model_predicts(timm_scripts: Scripts, tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="inference.py needs pandas")
    flags = f"--model {NAME} --pretrained --device cpu --workers 1 --topk 1".split()
    folder = timm_scripts.images / "validation"
    where = ["--data-dir", folder, "--results-dir", tmp_path, "--results-format", "json", "--no-console-results"]
    timm_scripts.run("inference.py", *flags, *where)
    answers = json.loads(next(tmp_path.glob("*.json")).read_text())
    expected = predictions(folder)
    assert len(set(expected.values())) > 1
    assert {name: row["label"] for name, row in answers.items()} == expected


def predictions(folder: Path) -> dict[str, str]:
    """Return the embedded weights' label of each image, by file name."""
    model = timm.create_model(NAME, pretrained=True).eval()
    images = ImageFolder(folder, timm.data.create_transform(**timm.data.resolve_model_data_config(model)))
    names = model.pretrained_cfg["label_names"]
    with torch.no_grad():
        labels = [names[int(model(image[None]).argmax())] for image, _ in images]
    return {Path(path).name: label for (path, _), label in zip(images.imgs, labels, strict=True)}


def test_benchmark_py_times_inference_and_training(timm_scripts: Scripts) -> None:
    flags = ["--model", NAME, "--device", "cpu", "--batch-size", "2", "--num-warm-iter", "1", "--num-bench-iter", "10"]
    result = result_of(timm_scripts.run("benchmark.py", *flags, "--bench", "both", "--opt", "adamw"))
    assert result["param_count"] == 0.54
    assert result["infer_samples_per_sec"] > result["train_samples_per_sec"] > 0


def test_onnx_export_py_writes_the_same_function(
    timm_scripts: Scripts, tmp_path: Path, figure: Callable[[str, object], None]
) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    timm_scripts.run("onnx_export.py", "--model", NAME, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = timm.create_model(NAME, pretrained=True).eval()(image)
        untrained = timm.create_model(NAME).eval()(image)
    (logits,) = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: image.numpy()})
    gap = float((torch.from_numpy(logits.copy()) - expected).abs().max())
    figure("largest logit difference", f"{gap:.1e}")
    assert float((untrained - expected).abs().max()) > 0.1
    assert gap < 1e-4


def test_avg_checkpoints_py_averages(timm_scripts: Scripts, plain: Any, tmp_path: Path) -> None:
    flags = ["--input", plain.folder, "--filter", "checkpoint-*.pth.tar", "--no-sort", "--no-use-ema"]
    timm_scripts.run("avg_checkpoints.py", *flags, "--output", tmp_path / "average.pth")
    average = load_state_dict(str(tmp_path / "average.pth"))
    every = [read_checkpoint(plain.folder / f"checkpoint-{epoch}.pth.tar")["state_dict"] for epoch in range(4)]
    mean = {key: sum(state[key].double() for state in every) / 4 for key in average if key != TRACKED}
    floats = {key for key in mean if not key.endswith("num_batches_tracked")}
    assert {FIRST, MEAN} <= floats
    assert largest_gap({key: every[0][key] for key in floats}, {key: mean[key] for key in floats}) > 1e-3
    assert largest_gap({key: average[key] for key in floats}, {key: mean[key] for key in floats}) < 1e-6
    timm.create_model(NAME).load_state_dict(average)


def test_clean_checkpoint_py_keeps_the_weights(timm_scripts: Scripts, plain: Any, tmp_path: Path) -> None:
    flags = ["--checkpoint", plain.folder / "last.pth.tar", "--no-use-ema", "--safetensors"]
    timm_scripts.run("clean_checkpoint.py", *flags, "--output", tmp_path / "clean.safetensors")
    clean = load_state_dict(str(next(tmp_path.glob("clean*"))))
    assert largest_gap(clean, plain.checkpoint["state_dict_ema"]) > 1e-3
    assert largest_gap(clean, plain.weights) == 0
    model = timm.create_model(NAME, checkpoint_path=str(next(tmp_path.glob("clean*"))))
    assert largest_gap(model.state_dict(), plain.weights) == 0
