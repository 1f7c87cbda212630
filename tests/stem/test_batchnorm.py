"""BatchNorm in a ViT: effects of averaging, conversion, freezing, small batches and accumulated gradients on a stem.

docs/batchnorm.md says what to choose; its claims are tested here and in test_distributed.py.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import convstem
from tests.support.assertions import randomise, relative_error
from tests.support.script_runs import largest_gap

NAME = "vit_nano4_convstem"
MEAN, COUNT = "patch_embed.backbone.0.bn.running_mean", "patch_embed.backbone.0.bn.num_batches_tracked"


def create(**kwargs: Any) -> Any:
    return timm.create_model(NAME, depth=2, **kwargs)


def images(count: int = 16) -> Tensor:
    """Return images that differ in brightness and in their channels."""
    generator = torch.Generator().manual_seed(1)
    level = torch.linspace(-2, 2, count).view(count, 1, 1, 1)
    return level + torch.randn(count, 3, 32, 32, generator=generator)


def buffers(model: Any) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


# Averages of weights


@pytest.mark.parametrize("foreach", [True, False])
def test_timms_ema_averages_the_running_statistics(foreach: bool) -> None:
    model = create()
    ema = ModelEmaV3(model, decay=0.75, foreach=foreach)
    model.train()(images())
    ema.update(model)
    averaged, now = ema.module.state_dict(), model.state_dict()
    assert now[MEAN].abs().max() > 1e-3
    assert torch.allclose(averaged[MEAN], 0.25 * now[MEAN])  # it started at zero
    assert averaged[COUNT] == now[COUNT] == 1


@pytest.mark.parametrize(("use_buffers", "share"), [(True, 0.25), (False, 1.0)])
def test_torchs_ema_averages_or_copies_the_running_statistics(use_buffers: bool, share: Any) -> None:
    """torchvision's train.py sets ``use_buffers=True``."""
    model = torchvision.models.get_model("vit_nano_4_convstem")
    ema = AveragedModel(model, avg_fn=lambda mean, new, _: 0.75 * mean + 0.25 * new, use_buffers=use_buffers)
    ema.update_parameters(model)
    model.train()(images())
    ema.update_parameters(model)
    key = "conv_proj.conv_bn_relu_0.1.running_mean"
    assert model.state_dict()[key].abs().max() > 1e-3
    assert torch.allclose(ema.module.state_dict()[key], share * model.state_dict()[key], atol=1e-7)


# SyncBatchNorm


def test_timms_sync_bn_conversion_keeps_keys_function_and_training() -> None:
    model = randomise(create())
    keys, expected = list(model.state_dict()), model.eval()(images())
    trained = model.train()(images())
    converted = convert_sync_batchnorm(randomise(create()))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.patch_embed.modules()) == 2
    assert list(converted.state_dict()) == keys
    assert torch.equal(converted.eval()(images()), expected)
    assert not torch.equal(trained, expected)
    assert torch.equal(converted.train()(images()), trained)  # one process has nothing to synchronize


def test_torchs_sync_bn_conversion_of_a_timm_stem_is_refused() -> None:
    """It would silently train without the stem's activations."""
    trained = timm.create_model(NAME, pretrained=True).eval()
    with torch.no_grad():
        expected = trained(images())
        model = nn.SyncBatchNorm.convert_sync_batchnorm(trained)
        assert relative_error(model(images()), expected) > 0.5
    for mode in (True, False):
        with pytest.raises(TypeError, match=r"dropped the activations.*timm\.layers\.convert_sync_batchnorm instead"):
            model.train(mode)


def test_torchs_sync_bn_conversion_of_a_torchvision_model_keeps_the_function() -> None:
    """torchvision's train.py uses torch's conversion; in its models activations are separate modules."""
    model = randomise(torchvision.models.get_model("vit_nano_4_convstem"))
    expected = model.eval()(images())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.conv_proj.modules()) == 2
    assert torch.equal(converted.eval()(images()), expected)


@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm])
def test_a_frozen_stem_stays_frozen_through_sync_bn_conversion(convert: bool) -> None:
    model = convert(convstem.freeze_stem(create(), bn_only=True)).train()
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    before = buffers(model)
    model(images())
    assert largest_gap(buffers(model), before) == 0


def test_a_synchronized_stem_can_be_frozen() -> None:
    model = convert_sync_batchnorm(create())
    convstem.freeze_stem(model, bn_only=True)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


# Freezing

FREEZE = {
    "stem_norm=frozen_bn": lambda: create(stem_norm="frozen_bn"),
    "freeze_stem": lambda: convstem.freeze_stem(create(), bn_only=True),
    "torchvision": lambda: convstem.freeze_stem(torchvision.models.get_model("vit_nano_4_convstem"), bn_only=True),
}


@pytest.mark.parametrize("how", FREEZE)
def test_frozen_statistics_survive_train_mode(how: Any) -> None:
    plain = create().train()
    before = buffers(plain)
    plain(images())
    assert largest_gap(buffers(plain), before) > 1e-3
    model = FREEZE[how]().train()
    before, expected = buffers(model), model.eval()(images())
    for _ in range(3):
        assert torch.equal(model.train()(images()), expected)
    assert largest_gap(buffers(model), before) == 0


def test_pretrained_weights_load_into_frozen_norms_and_back(tmp_path: Path) -> None:
    """Frozen norms have no batch counter, so a surplus or missing one is no error."""
    expected = timm.create_model(NAME, pretrained=True).state_dict()
    frozen = timm.create_model(NAME, pretrained=True, stem_norm="frozen_bn").state_dict()
    assert expected.keys() - frozen.keys() == {name for name in expected if name.endswith("num_batches_tracked")}
    save_file(frozen, tmp_path / "frozen.safetensors")
    overlay = {"file": str(tmp_path / "frozen.safetensors")}
    thawed = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    assert largest_gap(create().state_dict()[MEAN], expected[MEAN]) > 0.01
    assert all(torch.equal(loaded[key], expected[key]) for loaded in (frozen, thawed) for key in frozen)


# Small batches and accumulated gradients


def drift(model: Any, batch_size: int, steps: int = 20) -> float:
    """Return the relative change of eval outputs after train-mode forwards without any update."""
    everything, stem = images(64), model.patch_embed
    expected = model.eval()(everything)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    for step in range(steps):
        take = order[torch.arange(step * batch_size, (step + 1) * batch_size) % 64]
        stem.train()(everything[take])
    return relative_error(model.eval()(everything), expected)


@pytest.mark.full
@torch.no_grad()
def test_small_batches_move_the_function_more_than_large_ones() -> None:
    settled, everything = randomise(create()), images(64)
    for _ in range(100):
        settled.patch_embed.train()(everything)  # statistics of all images, as with a larger batch
    small, large = drift(copy.deepcopy(settled), 1), drift(copy.deepcopy(settled), 64)
    assert large < 1e-3
    assert small > 20 * large
    assert drift(convstem.freeze_stem(settled, bn_only=True), 1) == 0


@pytest.mark.parametrize(("norm", "same"), [("batchnorm2d", False), ("frozen_bn", True), ("layernorm2d", True)])
def test_accumulated_gradients_are_those_of_the_whole_batch_only_without_batch_statistics(norm: str, same: Any) -> None:
    accumulated, whole = create(stem_norm=norm).train(), create(stem_norm=norm).train()
    accumulated.load_state_dict(whole.state_dict())
    labels = torch.arange(16) % 10
    nn.functional.cross_entropy(whole(images()), labels).backward()
    for part, its_labels in zip(images().chunk(4), labels.chunk(4), strict=True):
        (nn.functional.cross_entropy(accumulated(part), its_labels) / 4).backward()
    actual, expected = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (accumulated, whole))
    gap = relative_error(actual, expected)
    assert gap < 1e-5 if same else gap > 0.1


def test_running_statistics_move_once_per_micro_batch() -> None:
    """Four micro-batches move the statistics four times: the effective momentum is 1 - 0.9**4."""
    model = create().train()
    for part in images().chunk(4):
        model(part)
    assert model.state_dict()[COUNT] == 4


def test_layernorm_keeps_no_statistics() -> None:
    assert len(list(create().buffers())) == 6
    assert not list(create(stem_norm="layernorm2d").buffers())
