"""The experiments' trainer: a resumed run equals an unbroken one, a NaN loss stops it, its data are right."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from timm.layers import Attention
from torch import Tensor

from experiments.cifar10 import data, models
from experiments.cifar10.__main__ import main, parse_args
from experiments.cifar10.data import Split, normalise
from experiments.cifar10.settings import BFLOAT16, Settings, changes, from_flags
from experiments.cifar10.teacher import Teacher
from experiments.cifar10.training import CHECKPOINT, Training, load_trained, so_far
from experiments.runs import RUNS, Row, by_name

ROOT = Path(__file__).parents[2]
MODEL = [
    "embed_dim=24",
    "depth=1",
    "stem_channels=(8,16)",
    "drop_path_rate=0.2",
    "global_pool=avg",
    "class_token=False",
]
EVERYTHING = [
    "--epochs",
    "3",
    "--batch-size",
    "10",
    "--cutmix",
    "1",
    "--model-ema-decay",
    "0.99",
    "--small-epochs",
    "1",
]

KILLED = """
import os, signal, sys
from experiments.cifar10 import __main__, training
step = training.Training.step

def killed(self, images, targets, update):
    if update == 6:  # in the middle of the second epoch
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, images, targets, update)

training.Training.step = killed
__main__.main(sys.argv[1:])
"""


def random_split(count: int) -> Split:
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    return data.move(Split(pixels, torch.arange(count) % 10), "cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A data folder with 40 training and 20 test images, already read."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in {"train": 40, "validation": 20}.items():
        torch.save(asdict(random_split(count)), folder / f"{name}.pt")
    return folder


def flags(images: Path, out: Path, *more: str) -> list[str]:
    where = ["--data-dir", str(images), "--out", str(out), "--device", "cpu", "--threads", str(torch.get_num_threads())]
    return [*where, *EVERYTHING, *more, "--model-kwargs", *MODEL]


def weights(folder: Path) -> Tensor:
    state: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    both = [*state["state_dict"].values(), *state["state_dict_ema"].values()]
    return torch.cat([tensor.flatten().double() for tensor in both])


def kept(folder: Path) -> Row:
    """Return the only line in a training's folder."""
    (row,) = by_name(folder).values()
    return row


@pytest.mark.full
def test_a_killed_training_ends_as_an_unbroken_one(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, *flags(images, tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert by_name(tmp_path / "killed") == {}
    assert len(so_far(tmp_path / "killed")["epochs"]) == 1
    begun = weights(tmp_path / "killed")
    assert main(flags(images, tmp_path / "killed")) == 0
    assert main(flags(images, tmp_path / "unbroken")) == 0
    assert not torch.equal(begun, weights(tmp_path / "unbroken"))
    assert torch.equal(weights(tmp_path / "killed"), weights(tmp_path / "unbroken"))
    killed, unbroken = (kept(tmp_path / name)["epochs"] for name in ("killed", "unbroken"))
    assert [(row["epoch"], row["loss"]) for row in killed] == [(row["epoch"], row["loss"]) for row in unbroken]


def test_another_seed_is_another_training(images: Path, tmp_path: Path) -> None:
    for seed in ("0", "1"):
        main(flags(images, tmp_path / seed, "--seed", seed))
    assert not torch.allclose(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_what_is_kept_has_the_time_and_the_last_accuracy(images: Path, tmp_path: Path) -> None:
    main(flags(images, tmp_path / "out"))
    head = kept(tmp_path / "out")
    rows = head["epochs"]
    assert json.loads(json.dumps(so_far(tmp_path / "out"))) == {key: head[key] for key in head if key != "run"}
    assert ["accuracy" in row for row in rows] == [False, False, True]
    assert head["hours"] == pytest.approx(sum(row["seconds"] for row in rows) / 3600)
    assert head["cpu_hours"] > 0
    model = load_trained(tmp_path / "out", "cpu")
    assert head["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    test = torch.load(images / "validation.pt", weights_only=True)
    right = model(normalise(test["images"])).argmax(1) == test["labels"]
    assert rows[-1]["accuracy"] == pytest.approx(100 * right.double().mean().item())


def test_a_lost_loss_stops_the_training(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(images, tmp_path / "out", "--lr", "1e30", "--opt", "sgd")) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: the loss became ")
    assert "in step 1 of epoch 0: the last checkpoint is of the epoch before; lower --lr (1e+30)" in message
    assert not (tmp_path / "out" / CHECKPOINT).exists()


def test_a_folder_of_other_settings_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(flags(images, tmp_path / "out"))
    assert main(flags(images, tmp_path / "out", "--lr", "0.1")) == 1
    assert "was trained with lr 0.005, not 0.1: choose another --out" in capsys.readouterr().err
    (tmp_path / "out" / RUNS).unlink()  # as if it had been killed: the checkpoint has the line too
    assert main(flags(images, tmp_path / "out", "--lr", "0.1")) == 1
    assert "was begun with lr 0.005, not 0.1: choose another --out" in capsys.readouterr().err


def test_a_training_that_is_done_is_not_done_again(images: Path, tmp_path: Path, capsys: Any) -> None:
    main(flags(images, tmp_path / "out"))
    first = capsys.readouterr().out
    (tmp_path / "out" / CHECKPOINT).unlink()
    main(flags(images, tmp_path / "out"))
    assert capsys.readouterr().out == first
    assert not (tmp_path / "out" / CHECKPOINT).exists()
    assert len((tmp_path / "out" / RUNS).read_text(encoding="utf-8").splitlines()) == 1


def test_a_record_from_before_a_setting_existed_had_its_default() -> None:
    settings = Settings(opt="adamw")
    record = asdict(settings)
    del record["layer_decay"]
    assert changes(record, settings) == ""
    assert changes(record, replace(settings, layer_decay=0.75)) == "layer_decay 0.0, not 0.75"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": "often"}, "flip must be one of alternating, none, random; got 'often'"),
        ({"teacher_share": 0.5, "views": 3}, "an even number of views, because flips alternate; got 3"),
        ({"cutmix": 1.0, "batch_size": 5}, "Mixup needs an even batch size; got 5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


def test_too_few_images_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="20 images do not fill 1 batches of 128: take fewer steps"):
        Training(Settings(), random_split(20))


def test_flags_are_the_settings(tmp_path: Path) -> None:
    args = parse_args(flags(tmp_path, tmp_path, "--no-amp", "--sched", "poly"))
    assert from_flags(args) == Settings(
        epochs=3, batch_size=10, cutmix=1.0, model_ema_decay=0.99, small_epochs=1, sched="poly",
        model_kwargs={"embed_dim": 24, "depth": 1, "stem_channels": (8, 16), "drop_path_rate": 0.2,
                      "global_pool": "avg", "class_token": False},
    )  # fmt: skip


def test_a_crop_is_a_window_of_the_image_with_reflected_borders() -> None:
    images, rows = random_split(6).images, torch.tensor([4, 1, 5])
    shift = torch.tensor([[0, 8, 3, 4, 7, 1], [2, 4, 8, 0, 5, 3]])
    mirrored = torch.tensor([False, True, False, False, False, True])
    found = data.View(shift, mirrored).apply(images, rows, crop=4)
    for row, image in zip(rows.tolist(), found, strict=True):
        padded = numpy.pad(images[row].numpy(), ((0, 0), (4, 4), (4, 4)), "reflect")
        top, left = shift[:, row].tolist()
        window = padded[:, top : top + 32, left : left + 32]
        assert numpy.array_equal(image.numpy(), window[..., ::-1] if mirrored[row] else window)


def test_flips_alternate() -> None:
    settings = Settings()
    views = [data.View.draw(100, number, settings) for number in range(4)]
    assert 0 < int(views[0].mirrored.sum()) < 100
    assert all(torch.equal(a.mirrored, ~b.mirrored) for a, b in pairwise(views))
    assert not torch.equal(views[0].shift, views[1].shift)
    first, second = (data.View.draw(100, number, replace(settings, flip="random")).mirrored for number in range(2))
    assert not torch.equal(first, ~second)


def test_an_epoch_sees_every_image_once_in_another_order() -> None:
    split, settings = random_split(40), Settings(batch_size=8)
    orders = [torch.cat([rows for _, rows in data.batches(split, epoch, settings)]) for epoch in range(2)]
    assert [sorted(order.tolist()) for order in orders] == [list(range(40))] * 2
    assert not torch.equal(*orders)


def test_held_out_images_are_not_trained_on(images: Path) -> None:
    train, held = data.read(images, Settings(holdout=10), "cpu")
    everything, test = data.read(images, Settings(), "cpu")
    assert (len(train.labels), len(held.labels), len(everything.labels), len(test.labels)) == (30, 10, 40, 20)
    assert sorted(held.labels.tolist()) == list(range(10))
    seen = {image.numpy().tobytes() for image in train.images}
    assert {image.numpy().tobytes() for image in everything.images} > seen
    assert not seen & {image.numpy().tobytes() for image in held.images}


@pytest.mark.parametrize("attack_steps", [0, 1])
def test_bfloat16_trains_the_same_model(attack_steps: int) -> None:
    model = {"embed_dim": 24, "depth": 1, "stem_channels": (8, 16)}
    settings = Settings(model_kwargs=model, batch_size=10, attack_steps=attack_steps)
    split, losses = random_split(10), {}
    for name, kept in {"float32": settings, "bfloat16": replace(settings, **BFLOAT16)}.items():
        training = Training(kept, split)
        attention = [layer.fused_attn for layer in training.model.modules() if isinstance(layer, Attention)]
        assert attention == [name == "float32"]
        losses[name] = training.run_epoch(0)["loss"]
        assert all(parameter.dtype == torch.float32 for parameter in training.model.parameters())
    assert losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=2e-2)


@pytest.mark.parametrize(("amp", "bound"), [(False, 2e-3), (True, 5e-2)])
def test_a_teacher_sees_what_its_student_sees(tmp_path: Path, amp: bool, bound: float) -> None:
    split = random_split(40)
    settings = Settings(
        model="convnet", model_kwargs={"widths": (8, 8)}, batch_size=10, teacher_share=0.5, views=2, amp=amp
    )
    teacher = Teacher(models.create(settings).eval(), split, settings, tmp_path)
    for epoch in range(3):
        logits = teacher.logits(data.view_number(epoch, settings))
        for images, rows in data.batches(split, epoch, settings):
            torch.testing.assert_close(logits[rows].float(), teacher.model(images), rtol=bound, atol=bound)
    assert not torch.allclose(teacher.logits(0), teacher.logits(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pt", "1.pt"]


def test_a_teachers_share_of_the_target() -> None:
    split, rows, logits = random_split(20), torch.tensor([3, 12]), torch.randn(20, 10)
    for share in (0.0, 0.25, 1.0):
        settings = Settings(batch_size=10, teacher_share=share, views=2, temperature=2.0, smoothing=0.1)
        targets = Training(settings, split).targets(rows, logits)
        labels = torch.nn.functional.one_hot(split.labels[rows], 10) * 0.9 + 0.01
        torch.testing.assert_close(targets, (1 - share) * labels + share * (logits[rows] / 2).softmax(1))
