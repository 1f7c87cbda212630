"""Stems without a norm in both hosts: saved, converted, transplanted into, loaded from stems with BatchNorm."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.models import save_for_hf
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig

import convstem
from convstem import StemSpec, convert
from convstem.errors import CheckpointError
from convstem.models.twins import as_timm_model, torchvision_twin
from convstem.registry import catalog
from convstem.registry.records import num_params
from convstem.stem.vocabulary import from_torchvision, override_stem, to_torchvision
from tests.support.assertions import largest_difference, randomise, relative_error

NANO, NANO_TV = "vit_nano4_convstem", "vit_nano_4_convstem"
STEM_KEYS = {"batchnorm2d": "patch_embed.backbone.0.bn.running_mean", "none": "patch_embed.backbone.0.conv.bias"}


def nano(norm: str = "none", **kwargs: object) -> nn.Module:
    return randomise(timm.create_model(NANO, stem_norm=norm, **kwargs)).eval()


def host_model(host: str, norm: str) -> nn.Module:
    if host == "timm":
        return timm.create_model(NANO, stem_norm=norm)
    stem = override_stem(catalog.find(NANO).stem, 4, norm=norm)
    return torchvision.models.get_model(NANO_TV, conv_stem_configs=stem)


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, dtype=dtype)


def test_no_norm_means_biases_and_back() -> None:
    stem = StemSpec((64, 128), norm="none")
    assert stem.bias
    assert stem == StemSpec((64, 128), norm="none", bias=True)
    assert not override_stem(stem, 4, norm="batchnorm2d").bias
    assert override_stem(stem, 4, norm="batchnorm2d", bias=True).bias


def test_a_stem_without_norm_is_a_list_of_configs() -> None:
    configs = [ConvStemConfig(64, 3, 2, None, nn.ReLU), ConvStemConfig(128, 3, 2, None, nn.ReLU)]
    stem = StemSpec((64, 128), norm="none")
    assert from_torchvision(configs) == stem
    assert to_torchvision(stem) == configs


def test_a_norm_that_the_host_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="ConvStemConfig has stem_norm batchnorm2d, frozen_bn, none, .*'layernorm2d'"):
        host_model("torchvision", "layernorm2d")
    with pytest.raises(ValueError, match="batchnorm2d, frozen_bn, layernorm2d, none; got 'groupnorm'"):
        host_model("timm", "groupnorm")


@pytest.mark.parametrize("norm", ["batchnorm2d", "frozen_bn", "layernorm2d", "none"])
def test_parameters_are_counted(norm: str) -> None:
    spec = replace(catalog.models()[NANO], stem_norm=norm, torchvision=None)
    assert num_params(spec) == sum(p.numel() for p in timm.create_model(NANO, stem_norm=norm).parameters())


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_both_hosts_compute_the_same(act: str) -> None:
    model = nano(stem_act=act).double()
    twin = torchvision_twin(model)
    x = images(torch.float64)
    assert largest_difference(randomise(torchvision_twin(nano(stem_act=act).double()), 3), model, x) > 1e-3
    assert largest_difference(twin, model, x) < 1e-12
    assert not any("running" in key for key in model.state_dict())
    back = as_timm_model(twin.float())
    assert back.patch_embed.stem_spec == model.patch_embed.stem_spec
    converted = convert(twin.state_dict(), source="torchvision", target="timm", stem_strides=(2, 2), num_heads=3)
    assert converted.model_args["stem_norm"] == "none"


def test_a_stem_without_norm_survives_saving(tmp_path: Path) -> None:
    model = nano(num_classes=7)
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.patch_embed.stem_spec.norm == "none"
    assert largest_difference(loaded, model, images()) == 0


@pytest.mark.parametrize("host", ["timm", "torchvision"])
@pytest.mark.parametrize(("source", "target", "said"), [
    ("batchnorm2d", "none", "was folded into the convolutions"),
    ("frozen_bn", "none", "was folded into the convolutions"),
    ("none", "batchnorm2d", "starts at mean 0 and variance 1"),
    ("none", "frozen_bn", "starts at mean 0 and variance 1"),
])  # fmt: skip
def test_a_checkpoint_of_each_norm_loads_into_the_others(host: str, source: str, target: str, said: str) -> None:
    model, other = randomise(host_model(host, source)).eval(), host_model(host, target).eval()
    x = images()
    with torch.no_grad():
        assert relative_error(other(x), model(x)) > 0.01
        with pytest.warns(UserWarning, match=said):
            other.load_state_dict(model.state_dict())
        assert relative_error(other(x), model(x)) < 1e-5


@pytest.mark.parametrize("bias", [False, True])
def test_conv_biases_before_a_norm_are_kept(bias: bool) -> None:
    model, other = nano("batchnorm2d", stem_bias=bias), nano("none")
    with pytest.warns(UserWarning, match="folded"):
        other.load_state_dict(model.state_dict())
    assert largest_difference(other, model, images()) < 1e-4
    back = nano("batchnorm2d", stem_bias=bias)
    with pytest.warns(UserWarning, match="mean 0"):
        back.load_state_dict(other.state_dict())
    assert largest_difference(back, model, images()) < 1e-4


@pytest.mark.parametrize("source", ["batchnorm2d", "none"])
@pytest.mark.parametrize("swap", [False, True])
def test_layernorm_cannot_become_another_norm(source: str, swap: bool) -> None:
    source, target = ("layernorm2d", source) if swap else (source, "layernorm2d")
    with pytest.raises(CheckpointError, match=r"neither can become the other: create the model with stem_norm="):
        nano(target).load_state_dict(nano(source).state_dict())


def test_pretrained_weights_with_batchnorm_load_without_it() -> None:
    model = nano("batchnorm2d")
    overlay = {"state_dict": model.state_dict()}
    with pytest.warns(UserWarning, match="folded"):
        plain = timm.create_model(NANO, pretrained=True, stem_norm="none", pretrained_cfg_overlay=overlay).eval()
    assert largest_difference(plain, model, images()) < 1e-4


@pytest.mark.parametrize("host", ["timm", "torchvision"])
def test_a_transplant_without_norm_is_exact(host: str) -> None:
    small = dict(depth=2, embed_dim=96, num_heads=3) if host == "timm" else {}
    if host == "timm":
        source = timm.create_model("vit_tiny_patch16_224", img_size=32, **small)
    else:
        source = torchvision.models.VisionTransformer(32, 16, 2, 3, 96, 192)
    source = randomise(source).eval()
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        twin = convstem.transplant(source.to(dtype), StemSpec((24, 48, 192, 768), norm="none"))
        x = torch.rand(4, 3, 32, 32, dtype=dtype) * 2 - 1
        with torch.no_grad():
            assert relative_error(twin.eval()(x), source(x)) < bound
    assert not any("running" in key for key in twin.state_dict())
    twin.train()
    with torch.no_grad():
        assert relative_error(twin(x), source(x)) < bound  # no batch statistics, no drift


@pytest.mark.parametrize("norm", ["frozen_bn", "none"])
def test_a_fresh_stem_without_batch_statistics_keeps_the_scale(norm: str) -> None:
    tokens = timm.create_model("vit_s16_convstem", stem_norm=norm, depth=1).patch_embed(torch.randn(2, 3, 224, 224))
    assert 0.3 < float(tokens.detach().std()) < 3


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_the_trunks_epsilon_is_plain_and_saved(eps: float, tmp_path: Path) -> None:
    model = nano("batchnorm2d", norm_eps=eps)
    twin = torchvision.models.get_model(NANO_TV, norm_eps=eps).eval()
    twin.load_state_dict(convert(model.state_dict(), source="timm", target="torchvision").state_dict)
    usual = timm.create_model(NANO)
    usual.load_state_dict(model.state_dict())
    assert largest_difference(usual, model, images()) > 1e-7
    assert largest_difference(twin, model, images()) < 1e-5
    assert {module.eps for module in twin.modules() if isinstance(module, nn.LayerNorm)} == {eps}
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert {module.eps for module in loaded.modules() if isinstance(module, nn.LayerNorm)} == {eps}
    assert as_timm_model(twin).norm.eps == torchvision_twin(loaded).encoder.ln.eps == eps


def test_the_epsilon_of_a_trunk_of_timm() -> None:
    model = timm.create_model("deit3_s16_convstem", norm_eps=1e-12, depth=1, img_size=32)
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-12}


def test_an_epsilon_that_cannot_be() -> None:
    for eps in (0, "1e-5"):
        with pytest.raises(ValueError, match=rf"norm_eps must be a positive number.*got norm_eps={eps!r}"):
            timm.create_model(NANO, norm_eps=eps)
    with pytest.raises(ValueError, match="norm_layer=.* as well: give one of them"):
        timm.create_model(NANO, norm_eps=1e-5, norm_layer="rmsnorm")


@pytest.mark.parametrize(("source", "target", "key"), [
    ("batchnorm2d", "none", "bn.bias"),
    ("batchnorm2d", "none", "bn.running_var"),
    ("none", "batchnorm2d", "conv.bias"),
])  # fmt: skip
@pytest.mark.parametrize("damaged", [None, torch.zeros(3)], ids=["missing", "misshapen"])
def test_a_damaged_stem_is_named_by_torch(source: str, target: str, key: str, damaged: torch.Tensor | None) -> None:
    state = dict(nano(source).state_dict())
    del state[f"patch_embed.backbone.0.{key}"]
    if damaged is not None:
        state[f"patch_embed.backbone.0.{key}"] = damaged
    with (
        pytest.warns(UserWarning, match="folded|mean 0"),  # the other layer is complete
        pytest.raises(RuntimeError, match="patch_embed.backbone.0"),
    ):
        nano(target).load_state_dict(state)
