"""Transplant on whole models: every family keeps its function, and nothing else changes."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor

import convstem
from convstem import StemSpec
from convstem.errors import ArgumentError, ArgumentTypeError
from convstem.registry.stem_spec import default_stem
from convstem.stem.carried import normalised_range
from convstem.stem.norms import init_stem
from tests.support.assertions import largest_difference, randomise, relative_error
from tests.support.everyday import mostly_in_ci

TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"

# One small member of each family: (timm name, arguments).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 64}),
    "reg": ("vit_small_patch16_dinov3", {"depth": 2, "img_size": 64}),
    "clip": ("vit_base_patch16_clip_224", {"depth": 1, "img_size": 64}),
    "siglip": ("vit_base_patch16_siglip_224", {"depth": 1, "img_size": 64}),
    "deit3": ("deit3_small_patch16_224", {"depth": 2, "img_size": 64}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"depth": 2, "img_size": 64}),
    "eva": ("eva02_base_patch16_clip_224", {"depth": 1, "img_size": 64}),
    "beit": ("beit_base_patch16_224", {"depth": 1, "img_size": 64}),
    "cait": ("cait_xxs24_224", {"depth": 1, "img_size": 64}),
    "convit": ("convit_tiny", {"depth": 2, "img_size": 64}),
    "relpos": ("vit_relpos_small_patch16_224", {"depth": 1, "img_size": 64}),
    "sam": ("samvit_base_patch16", {"depth": 1, "img_size": 64, "global_attn_indexes": ()}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}),
    "patch 8": ("vit_small_patch8_224", {"depth": 1, "img_size": 32}),
}


def images(model: Any, batch: int = 2) -> Tensor:
    """Random images over the model's whole pixel range."""
    cfg = model.pretrained_cfg
    low, high = map(torch.tensor, normalised_range(cfg["mean"], cfg["std"], model.in_chans))
    size = model._traits["img_size"] or cfg["input_size"][1:]
    box = torch.rand(batch, model.in_chans, *size)
    return (low[:, None, None] + (high - low)[:, None, None] * box).to(next(model.parameters()).dtype)


def small(family: str = "vit", **kwargs: Any) -> Any:
    name, args = FAMILIES[family]
    return randomise(timm.create_model(name, **{**args, **kwargs})).eval()


@pytest.mark.parametrize("family", mostly_in_ci([*FAMILIES], ["vit", "distilled", "patch 8"]))
def test_every_family_keeps_its_function(family: str) -> None:
    source = small(family)
    x = images(source)
    twin = convstem.transplant(source)
    name = next(n for n, m in twin.named_modules() if type(m).__name__ == "ConvStemEmbed")
    with torch.no_grad():
        expected, actual = source(x), twin(x)
        assert relative_error(twin.get_submodule(name)(x), source.get_submodule(name)(x)) < 2e-6
        assert relative_error(actual, expected) < 5e-6
        init_stem(twin.get_submodule(name), "none")  # negative control: another stem, another function
        assert relative_error(twin(x), expected) > 1e-2


@pytest.mark.parametrize("patch", [16, pytest.param(32, marks=pytest.mark.full)])
def test_torchvisions_own_vits(patch: int) -> None:
    source = torchvision.models.VisionTransformer(2 * patch, patch, 1, 12, 768, 3072, num_classes=7)
    randomise(source).eval()
    low, high = map(torch.tensor, normalised_range((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3))
    x = low[:, None, None] + (high - low)[:, None, None] * torch.rand(2, 3, 2 * patch, 2 * patch)
    twin = convstem.transplant(source)
    assert isinstance(twin.conv_proj, torch.nn.Sequential)
    with torch.no_grad():
        assert relative_error(twin(x), source(x)) < 5e-6
    with pytest.raises(TypeError, match="already has a conv stem"):
        convstem.transplant(twin)


def test_float64_is_exact() -> None:
    source = small(dtype=torch.float64)
    x = images(source)
    with torch.no_grad():
        assert relative_error(convstem.transplant(source)(x), source(x)) < 1e-12


def test_the_source_is_not_touched_and_shares_nothing() -> None:
    source = small()
    before = copy.deepcopy(source.state_dict())
    cfg, args = dict(source.pretrained_cfg), dict(source._model_args)
    twin = convstem.transplant(source)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(before[k], v) for k, v in source.state_dict().items())
    assert (source.pretrained_cfg, source._model_args) == (cfg, args)


def test_everything_else_is_kept() -> None:
    source = small(dtype=torch.bfloat16, dynamic_img_size=True).train()
    twin = convstem.transplant(source)
    assert twin.training
    assert twin.patch_embed.training
    assert {t.dtype for t in twin.state_dict().values() if t.is_floating_point()} == {torch.bfloat16}
    assert twin.eval()(torch.zeros(1, 3, 40, 70, dtype=torch.bfloat16)).shape == (1, 1000)
    assert twin.pretrained_cfg["first_conv"] == twin._traits["first_conv"] == "patch_embed.backbone.0.conv"
    assert twin.pretrained_cfg["architecture"] == "vit_ti16_convstem"
    assert twin.transplant_report.scope == "every input"


def test_set_input_size_after_transplant() -> None:
    source = small()
    twin = convstem.transplant(source)
    source.set_input_size((96, 64))
    twin.set_input_size((96, 64))
    x = images(source)
    with torch.no_grad():
        assert relative_error(twin(x), source(x)) < 5e-6


def test_a_transplanted_model_is_saved_and_reloaded_as_an_ordinary_checkpoint(tmp_path: Path) -> None:
    twin = convstem.transplant(small(), stem=StemSpec((48, 96, 192, 768)))
    timm.models.save_for_hf(twin, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.patch_embed.stem_spec.channels == (48, 96, 192, 768)
    assert largest_difference(twin, again, images(twin)) == 0


def test_a_narrow_stem_is_refused_with_the_channels_that_would_do() -> None:
    source = small()
    message = (
        r"\[24, 48, 96, 96\] is too narrow .*\[24, 96, 384, 384\] .* every input, \[12, 48, 192, 384\] for pixels in"
    )
    with pytest.raises(ArgumentError, match=message):
        convstem.transplant(source, StemSpec((24, 48, 96, 96)))
    for channels, scope in (((24, 96, 384, 384), "every input"), ((12, 48, 192, 384), "pixels in range")):
        assert convstem.transplant(source, channels).transplant_report.scope == scope


NARROW = (12, 24, 48, 96)
NARROW_CALLS = {
    "transplant a name": lambda: convstem.transplant(TINY, StemSpec(NARROW)),
    "create_model": lambda: timm.create_model("vit_ti16_convstem", pretrained=True, stem_channels=NARROW),
    "create_model on a trunk": lambda: timm.create_model(
        "vit_s16_dinov3_convstem", pretrained=True, stem_channels=NARROW
    ),
    "load": lambda: convstem.load("vit_ti16_convstem", stem_channels=NARROW),
}


@pytest.mark.full
def test_a_narrow_stem_is_refused_at_every_door(hub_file: Callable[..., None]) -> None:
    for name in (TINY, "vit_small_patch16_dinov3.lvd1689m"):
        hub_file(f"timm/{name}", randomise(timm.create_model(name)).state_dict())
    for call in NARROW_CALLS.values():
        with pytest.raises(ArgumentError, match=r"\[12, 24, 48, 96\] is too narrow .* layer 1 has 24 channels for 48"):
            call()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": {}}, ArgumentTypeError, "transplant takes a patchify ViT or the name of one; got dict"),
        ({"pixel_range": 5}, ArgumentError, r"pixel_range is \(low, high\), .*; got 5"),
        ({"pixel_range": ("a", "b")}, ArgumentError, "low and high need one value for each of 3 input channels"),
        ({"margin": "x"}, ArgumentError, "margin must be zero or positive, and finite; got 'x'"),
    ],
)
def test_arguments_of_another_kind(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convstem.transplant(**{"model": small(), **arguments})


def test_a_pixel_range_is_a_tensor_too() -> None:
    source, ends = small(), ([-2.0] * 3, [2.0] * 3)
    twins = [convstem.transplant(source, (48, 96, 192, 384), pixel_range=end) for end in (ends, torch.tensor(ends))]
    assert all(map(torch.equal, *(twin.state_dict().values() for twin in twins)))


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        ("resnet18", {}, TypeError, "ResNet has no patch_embed; transplant takes models with one timm PatchEmbed"),
        ("pvt_v2_b0", {}, TypeError, "PyramidVisionTransformerV2 has a OverlapPatchEmbed"),
        ("twins_svt_small", {}, TypeError, "transplant takes models with one timm PatchEmbed"),
        ("vit_tiny_r_s16_p8_224", {}, TypeError, "has a HybridEmbed"),
        ("vit_nano4_convstem", {}, TypeError, "already has a conv stem"),
    ],
)
def test_what_cannot_be_transplanted_is_refused(name: str, kwargs: Any, error: type[Exception], message: str) -> None:
    model = timm.create_model(name, **kwargs)
    with pytest.raises(error, match=message):
        convstem.transplant(model)


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ("vit_s16_cvst", "norm batchnorm2d or frozen_bn and no bias, or norm none"),
        ("vit_b32_convstem", "must equal patch_size 16; .* reduce the image by 32"),
    ],
)
def test_stems_that_cannot_carry_a_patch_embedding(stem: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convstem.transplant(small(), stem=stem)


def test_nan_weights_and_an_unknown_pixel_range() -> None:
    source = small()
    with torch.no_grad():
        source.patch_embed.proj.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight must be finite"):
        convstem.transplant(source)
    bare = timm.models.vision_transformer.VisionTransformer(32, 8, embed_dim=24, depth=1, num_heads=2)
    assert convstem.transplant(bare).transplant_report.scope == "every input"  # needs no pixel range
    lean = (12, 48, 192)
    with pytest.raises(ValueError, match=r"3 input channels is unknown.*pass pixel_range=\(low, high\)"):
        convstem.transplant(bare, lean)
    twin = convstem.transplant(bare, lean, pixel_range=([-1.0] * 3, [1.0] * 3))
    assert largest_difference(twin, bare, 2 * torch.rand(1, 3, 32, 32) - 1) < 1e-5


def test_patch_14_with_a_stem_of_its_own() -> None:
    source = small("vit", patch_size=14, img_size=56)
    stem = StemSpec((12, 588), strides=(2, 7), kernel_sizes=(3, 13))
    twin = convstem.transplant(source, stem=stem)
    x = images(source)
    with torch.no_grad():
        assert relative_error(twin(x), source(x)) < 5e-6


@pytest.mark.parametrize(("norm", "bn_only"), [("batchnorm2d", True), ("batchnorm2d", False), ("frozen_bn", True)])
def test_a_frozen_stem_survives_train(norm: str, bn_only: bool) -> None:
    source = small()
    x = images(source, batch=4)
    model = convstem.transplant(source, stem=StemSpec((24, 48, 192, 768), norm=norm))
    if norm == "batchnorm2d":
        convstem.freeze_stem(model, bn_only=bn_only)
    with torch.no_grad():
        assert relative_error(model(x), source(x)) < 5e-6
        expected = model(x)
    model.train()
    model(torch.randn_like(x)).sum().backward()
    assert any(p.requires_grad for p in model.patch_embed.backbone.parameters()) == bn_only
    with torch.no_grad():
        assert torch.equal(model.eval()(x), expected)


def test_batchnorm_drifts_unless_frozen_and_the_default_stem_has_none() -> None:
    """The danger in fine-tuning: train-mode forwards alone change the function."""
    source = small()
    x = images(source, batch=4)
    stem = default_stem(16, source.embed_dim)
    assert stem.norm == "none"
    free = convstem.transplant(source, replace(stem, norm="batchnorm2d", bias=False))
    frozen = convstem.freeze_stem(copy.deepcopy(free), bn_only=True)
    plain = convstem.transplant(source)
    with torch.no_grad():
        for model in (free.train(), frozen.train(), plain.train()):
            for _ in range(20):
                model(images(source, batch=4))
        assert relative_error(free.eval().patch_embed(x), source.patch_embed(x)) > 1e-3
        assert relative_error(frozen.eval().patch_embed(x), source.patch_embed(x)) < 2e-6
        assert relative_error(plain.patch_embed(x), source.patch_embed(x)) < 2e-6  # in train mode


def test_freezing_a_plain_model_is_refused() -> None:
    with pytest.raises(TypeError, match="has no conv stem; create one"):
        convstem.freeze_stem(small())
    model = torchvision.models.get_model("vit_nano_4_convstem")
    convstem.freeze_stem(model)
    assert not any(p.requires_grad for p in model.conv_proj.parameters())


def test_spare_channels_learn() -> None:
    model = convstem.transplant(small(), stem=StemSpec((48, 96, 384, 768)))
    first = model.patch_embed.backbone[0].conv.weight
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(2):
        optimiser.zero_grad()
        model(images(model, batch=2)).square().mean().backward()
        spare = first.grad[24:].abs().max()
        assert (spare == 0) if step == 0 else (spare > 0)
        assert first.grad[:24].abs().max() > 0
        optimiser.step()


def test_the_default_stem_is_the_named_familys() -> None:
    twin = convstem.transplant(small())
    assert tuple(m.conv.out_channels for m in twin.patch_embed.backbone) == (*default_stem(16, 192).channels, 192)
