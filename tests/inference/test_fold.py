"""Folding gives the same function without BatchNorm, as an ordinary model of either host."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner
from timm.layers import convert_sync_batchnorm
from timm.models import save_for_hf
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.utils import parametrizations

import convstem
from convstem import convert, fold, freeze_stem
from convstem.cli.main import main
from convstem.errors import ArgumentError, UnsupportedModelError
from convstem.models.twins import as_timm_model
from convstem.stem.find import find_stem
from tests.support.assertions import largest_difference, randomise, relative_error

NAMES = {"timm": "vit_nano4_convstem", "torchvision": "vit_nano_4_convstem"}


def model_of(host: str, **kwargs: object) -> nn.Module:
    create = timm.create_model if host == "timm" else torchvision.models.get_model
    return randomise(create(NAMES[host], **kwargs)).eval()


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, dtype=dtype)


@torch.no_grad()
def error(a: nn.Module, b: nn.Module, x: torch.Tensor) -> float:
    return relative_error(a(x), b(x))


@pytest.mark.parametrize("host", NAMES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=str)
def test_the_function_is_the_same(host: str, dtype: torch.dtype, bound: float) -> None:
    model = model_of(host).to(dtype)
    plain = fold(model)
    stem, other = find_stem(plain), find_stem(model)
    assert error(fold(randomise(model_of(host), 3).to(dtype)), model, images(dtype)) > 0.1
    assert error(stem, other, images(dtype)) < bound
    assert error(plain, model, images(dtype)) < 10 * bound
    assert not any("running" in key for key in plain.state_dict())
    assert any("running" in key for key in model.state_dict())  # a copy was folded


@pytest.mark.parametrize("host", NAMES)
def test_in_place_and_frozen(host: str) -> None:
    model = freeze_stem(model_of(host), bn_only=False)
    x = images()
    before = model(x).detach()
    assert fold(model, inplace=True) is model
    assert relative_error(model(x).detach(), before) < 1e-5
    assert not any(p.requires_grad for p in find_stem(model).parameters())  # it stays frozen


def test_a_folded_timm_model_is_an_ordinary_one(tmp_path: Path) -> None:
    model = model_of("timm", num_classes=7)
    plain = fold(model)
    assert plain.patch_embed.stem_spec.norm == "none"
    assert model.patch_embed.stem_spec.norm == "batchnorm2d"
    save_for_hf(plain, tmp_path)
    loaded = convstem.load(tmp_path)
    assert loaded.patch_embed.stem_spec == plain.patch_embed.stem_spec
    assert largest_difference(loaded, plain, images()) == 0
    twin = torchvision.models.get_model(
        NAMES["torchvision"], num_classes=7, conv_stem_configs=plain.patch_embed.stem_spec
    ).eval()
    twin.load_state_dict(convert(plain.state_dict(), source="timm", target="torchvision").state_dict)
    assert largest_difference(twin, plain, images()) < 1e-5
    loss = plain.train()(images()).sum()
    loss.backward()  # it can be trained
    assert plain.patch_embed.backbone[0].conv.bias.grad is not None


def test_a_folded_torchvision_model_is_pushed_like_any_other() -> None:
    plain = fold(model_of("torchvision"))
    back = as_timm_model(plain).eval()
    assert back.patch_embed.stem_spec.norm == "none"
    assert largest_difference(back, plain, images()) < 1e-5


def test_another_trunk_is_folded() -> None:
    model = randomise(timm.create_model("deit3_s16_convstem", depth=1, img_size=32, stem_norm="batchnorm2d")).eval()
    plain = fold(model)
    assert error(plain, model, images()) < 1e-5
    assert plain.patch_embed.stem_spec.norm == "none"


def test_timms_own_switch_finds_it() -> None:
    model = model_of("timm")
    plain = reparameterize_model(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert error(plain, model, images()) < 1e-5
    assert plain.patch_embed.stem_spec.norm == "none"


@pytest.mark.parametrize(("norm", "said"), [("none", "already has no norm"), ("layernorm2d", "has LayerNorm")])
def test_nothing_to_fold_is_said(norm: str, said: str) -> None:
    model = model_of("timm", stem_norm=norm)
    with pytest.warns(UserWarning, match=said):
        assert fold(model) is model


def test_folding_twice_is_said() -> None:
    plain = fold(model_of("torchvision"))
    with pytest.warns(UserWarning, match="nothing was folded"):
        assert fold(plain) is plain


def test_training_mode_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"in training mode cannot be folded.*call model.eval\(\) first"):
        fold(model_of("timm").train())


def test_sync_batchnorm_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="has SyncBatchNorm"):
        fold(convert_sync_batchnorm(model_of("timm")))


@pytest.mark.parametrize("host", NAMES)
def test_hooks_and_parametrizations_are_refused(host: str) -> None:
    hooked = model_of(host)
    next(m for m in find_stem(hooked).modules() if isinstance(m, nn.Conv2d)).register_forward_hook(lambda *_: None)
    x = images()
    before = hooked(x).detach()
    with pytest.raises(UnsupportedModelError, match="has hooks, which would see other values"):
        fold(hooked, inplace=True)
    assert torch.equal(hooked(x).detach(), before)  # nothing was partly folded
    normed = model_of(host)
    parametrizations.weight_norm(next(m for m in find_stem(normed).modules() if isinstance(m, nn.Conv2d)))
    with pytest.raises(UnsupportedModelError, match="has parametrizations, which a folded weight"):
        fold(normed)


def test_a_patchify_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="has no conv stem"):
        fold(timm.create_model("vit_tiny_patch16_224", depth=1).eval())


def test_the_command_writes_a_folder_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "folded"
    result = CliRunner().invoke(main, ["fold", NAMES["timm"], "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "vit_nano4_convstem with stem_norm none" in result.output
    loaded = convstem.load(out)
    assert error(loaded, convstem.load(NAMES["timm"]), images()) < 1e-5
    assert convstem.verify(out).ok
    again = CliRunner().invoke(main, ["fold", NAMES["timm"], "--out", str(out)])
    assert again.exit_code == 1
    assert "model.safetensors already: name another folder" in again.output
