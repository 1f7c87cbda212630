"""The feature pyramid: its maps, their equality with the model's own, and errors for wrong requests."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import freeze_batch_norm_2d
from timm.models import FeatureInfo, get_model_traits
from torch import Tensor, nn

import convstem
from convstem.errors import ArgumentError, UnsupportedModelError
from convstem.features import FeaturePyramid
from convstem.hosts.describe import summarise
from convstem.registry import catalog
from convstem.registry.catalog import named_trunks
from tests.support.assertions import randomise
from tests.support.everyday import mostly_in_ci

NANO = "vit_nano4_convstem"
TINY = "vit_ti16_convstem"
STRIDES = [2, 4, 8, 16, 32]


def pyramid(name: str = NANO, **kwargs: Any) -> Any:
    return timm.create_model(name, features_only=True, feature_cls="pyramid", **kwargs)


def sizes(maps: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(m.shape[2:]) for m in maps]


@pytest.mark.parametrize("name", mostly_in_ci([*catalog.models(), *named_trunks()], [NANO, "vit_s16_dinov3_convstem"]))
def test_every_name_has_five_levels_and_says_so(name: str) -> None:
    side = timm.get_pretrained_cfg(name).input_size[-1]
    with torch.device("meta"):
        model = pyramid(name, depth=2)
        maps = model(torch.empty(1, 3, side, side))
    assert isinstance(model.feature_info, FeatureInfo)
    assert model.feature_info.reduction() == STRIDES
    assert sizes(maps) == [(ceil(side / s),) * 2 for s in STRIDES]
    assert model.feature_info.channels() == model.out_channels == [m.shape[1] for m in maps]
    said = [(level["stride"], level["channels"]) for level in summarise(name)["pyramid"]]
    assert said == list(zip(STRIDES, model.out_channels, strict=True))
    assert all(isinstance(model.get_submodule(path), nn.Module) for path in model.feature_info.module_name())


def outputs_of(model: nn.Module, x: Tensor, paths: list[str]) -> dict[str, Tensor]:
    """Return the outputs of some of a model's modules, recorded by hooks."""
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(path, output.clone())

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


# The layers whose activations complete strides 2, 4 and 8. The 18GF stem has stride-1 layers in between.
@pytest.mark.parametrize(
    ("stem", "layers"),
    [
        ({"stem_channels": [8, 12, 16, 24]}, [0, 1, 2]),
        ({"stem_channels": [8, 12, 12, 16, 16, 24], "stem_strides": [2, 2, 1, 2, 1, 2]}, [0, 2, 4]),
        ({"stem_channels": [6, 8, 12, 16, 24], "stem_strides": [1, 2, 2, 2, 2]}, [1, 2, 3]),
    ],
)
def test_the_maps_are_those_the_model_computes(stem: dict[str, Any], layers: list[int]) -> None:
    model = randomise(timm.create_model(TINY, **stem, img_size=64, depth=2)).eval().double()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    seen = outputs_of(model, x, [f"patch_embed.backbone.{layer}" for layer in layers])
    (last,) = model.forward_intermediates(x, indices=[1], norm=True, intermediates_only=True)
    expected = [*seen.values(), last, nn.functional.max_pool2d(last, 2)]
    other = FeaturePyramid(timm.create_model(TINY, **stem, img_size=64, depth=2).double()).eval()
    assert not any(torch.allclose(a, b) for a, b in zip(other(x), expected, strict=True))  # negative control
    maps = FeaturePyramid(model).eval()(x)
    assert sizes(maps) == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [32, 45])
@pytest.mark.parametrize("name", mostly_in_ci([NANO, "vitc_18gf"], [NANO]))
def test_both_hosts_have_the_same_maps(name: str, side: int) -> None:
    sizes = {"img_size": 32, "depth": 2} if name != NANO else {}
    ours: Any = randomise(timm.create_model(name, dynamic_img_size=True, num_classes=10, **sizes)).eval().double()
    theirs = torchvision.models.get_model(
        catalog.find(name).torchvision, image_size=32, num_classes=10, num_layers=len(ours.blocks)
    )
    theirs = theirs.eval().double()
    x = torch.rand(1, 3, side, side, dtype=torch.float64)
    a, b = convstem.feature_pyramid(ours).eval(), convstem.feature_pyramid(theirs).eval()
    assert not torch.allclose(a(x)["0"], b(x)["0"])  # negative control
    theirs.load_state_dict(convstem.convert(ours.state_dict(), source="timm", target="torchvision").state_dict)
    assert a.out_channels == b.out_channels
    assert isinstance(a(x), OrderedDict)
    for (key, left), (same, right) in zip(a(x).items(), b(x).items(), strict=True):
        assert key == same
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def test_pretrained_weights_arrive() -> None:
    model: Any = convstem.load(f"{NANO}.cifar10")
    x = torch.rand(1, 3, 32, 32)
    (last,) = model.forward_intermediates(x, indices=[len(model.blocks) - 1], norm=True, intermediates_only=True)
    assert not torch.allclose(pyramid().eval()(x)[1], last)  # negative control
    torch.testing.assert_close(pyramid(pretrained=True).eval()(x)[1], last)
    torch.testing.assert_close(convstem.load(NANO, features_only=True, feature_cls="pyramid")(x)[1], last)


def test_a_transplanted_trunk_keeps_its_function_and_gains_maps() -> None:
    plain = randomise(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, dynamic_img_size=True)).eval()
    with pytest.raises(UnsupportedModelError, match=r"has no conv stem.*convstem.transplant\(model\)"):
        FeaturePyramid(plain)
    x = torch.rand(1, 3, 64, 96)
    (expected,) = plain.forward_intermediates(x, indices=[1], norm=True, intermediates_only=True)
    maps = FeaturePyramid(convstem.transplant(plain)).eval()(x)
    torch.testing.assert_close(maps[3], expected, rtol=1e-3, atol=1e-3)
    assert sizes(maps[:3]) == [(32, 48), (16, 24), (8, 12)]


def test_the_model_stays_whole_and_shares_its_parameters() -> None:
    model = timm.create_model(NANO).eval()
    x = torch.rand(1, 3, 32, 32)
    before, keys = model(x), list(model.state_dict())
    part = FeaturePyramid(model, (0,))
    torch.testing.assert_close(model(x), before)
    assert list(model.state_dict()) == keys
    assert {id(p) for p in part.parameters()} < {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("out_indices", "blocks", "strides", "depth"),
    [
        (None, 1, STRIDES, 6),
        ((0,), 1, [2], 0),
        (2, 1, [16, 32], 6),
        ((-1, 0), 1, [32, 2], 6),
        (None, (1, 3), [2, 4, 4, 8, 16, 32], 4),
        ((1,), (1, 3), [4], 2),
        (None, 6, [2, 4, 4, 4, 4, 4, 4, 8, 16, 32], 6),
    ],
)
def test_what_no_map_needs_is_dropped(out_indices: Any, blocks: Any, strides: list[int], depth: int) -> None:
    kwargs = {} if out_indices is None else {"out_indices": out_indices}
    model = pyramid(pyramid_blocks=blocks, **kwargs)
    assert model.feature_info.reduction() == strides
    maps = model(torch.rand(2, 3, 32, 32))
    assert sizes(maps) == [(32 // s,) * 2 for s in strides]
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert (len(model.trunk.blocks) if model.trunk is not None else 0) == depth
    assert not any("head" in name for name, _ in model.named_parameters())
    loss = sum(m.square().sum() for m in maps)
    assert isinstance(loss, Tensor)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("name", "sides"), [(NANO, [(33, 50), (4, 7)]), (TINY, [(65, 100), (224, 224)])])
def test_any_image_size_is_rounded_up_at_every_stride(name: str, sides: list[tuple[int, int]]) -> None:
    for height, width in sides:
        maps = pyramid(name).eval()(torch.rand(1, 3, height, width))
        assert sizes(maps) == [(ceil(height / s), ceil(width / s)) for s in STRIDES]


def test_a_trunk_tied_to_one_size_says_so() -> None:
    for kwargs in ({"dynamic_img_size": False}, {"dynamic_img_size": False, "img_size": 64}):
        with pytest.raises(AssertionError, match=r"takes images of \d+x\d+ pixels only; got about 48x48: create it"):
            pyramid(**kwargs)(torch.rand(1, 3, 48, 48))
    with pytest.raises(ArgumentError, match="multiple of the patch size 4; got 33x33"):
        pyramid(img_size=33, dynamic_img_size=False)


@pytest.mark.parametrize("fmt", ["NHWC", "NLC", "NCL"])
def test_output_format(fmt: str) -> None:
    model, x = pyramid(output_fmt=fmt).eval(), torch.rand(1, 3, 32, 32)
    same = pyramid().eval()
    same.load_state_dict(model.state_dict())
    maps, formatted = same(x), model(x)
    order = {"NHWC": lambda m: m.permute(0, 2, 3, 1), "NLC": lambda m: m.flatten(2).mT, "NCL": lambda m: m.flatten(2)}
    assert all(torch.equal(a, order[fmt](b)) for a, b in zip(formatted, maps, strict=True))
    assert model.output_fmt == fmt


def test_other_channels_and_metadata() -> None:
    model = pyramid(in_chans=1, pretrained=True)
    assert [m.shape[1] for m in model(torch.rand(1, 1, 32, 32))] == model.feature_info.channels()
    assert model.in_chans == get_model_traits(model)["in_chans"] == 1
    assert model.pretrained_cfg["architecture"] == NANO
    assert "num_classes" not in model.pretrained_cfg
    assert "num_classes" in timm.create_model(NANO).pretrained_cfg  # negative control
    assert get_model_traits(model).keys() == get_model_traits(timm.create_model(NANO)).keys() - {"num_classes"}


def test_output_stride_keeps_the_number_of_levels() -> None:
    model = pyramid(TINY, output_stride=16, depth=1).eval()
    assert model.feature_info.reduction() == [2, 4, 8, 16, 16]
    maps = model(torch.rand(1, 3, 64, 64))
    assert torch.equal(maps[3], maps[4])
    with pytest.raises(ArgumentError, match="output_stride must be one of 16, 32 for this trunk.*; got 8"):
        pyramid(TINY, output_stride=8, depth=1)
    with pytest.raises(ArgumentError, match="output_stride must be one of 16, 32 .*; got 20"):
        pyramid(TINY, output_stride=20, depth=1)


def test_an_output_format_that_does_not_exist() -> None:
    with pytest.raises(ArgumentError, match="output_fmt must be one of NCHW, NCL, NHWC, NLC; got 'HWC'"):
        pyramid(output_fmt="HWC")


@pytest.mark.parametrize("index", [5, -6, "1"])
def test_a_level_that_does_not_exist(index: int) -> None:
    there = r"there are 0 \(stride 2\), 1 \(stride 4\), 2 \(stride 8\), 3 \(stride 16\), 4 \(stride 32\)"
    with pytest.raises(
        ArgumentError, match=rf"out_indices must be indices from -5 to 4.*; got \(0, {index!r}\): {there}"
    ):
        pyramid(out_indices=(0, index))


def test_a_block_that_does_not_exist() -> None:
    with pytest.raises(
        ArgumentError, match="pyramid_blocks must be indices from -6 to 5.*; got 7: there are block 0, "
    ):
        pyramid(pyramid_blocks=7)
    with pytest.raises(ArgumentError, match=r"got \(\)"):
        pyramid(pyramid_blocks=())


def test_models_without_stem_or_maps() -> None:
    for plain in (nn.Linear(1, 1), torchvision.models.VisionTransformer(32, 4, 1, 1, 8, 8)):
        with pytest.raises(UnsupportedModelError, match="has no conv stem, and a patch embedding has no maps inside"):
            convstem.feature_pyramid(plain)

    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = timm.create_model(NANO).patch_embed

    with pytest.raises(UnsupportedModelError, match="Blind does not give its blocks' outputs"):
        convstem.feature_pyramid(Blind())


def test_without_feature_cls_nothing_changes() -> None:
    model = timm.create_model(NANO, features_only=True)
    assert type(model).__name__ == "FeatureGetterNet"
    assert model.feature_info.reduction() == [4, 4, 4]
    with pytest.raises(ArgumentError, match="Unknown feature class"):
        timm.create_model(NANO, features_only=True, feature_cls="pyramids")


@pytest.mark.parametrize("host", ["timm", "torchvision"])
def test_gradient_checkpointing(host: str) -> None:
    model = timm.create_model(NANO) if host == "timm" else torchvision.models.get_model("vit_nano_4_convstem")
    plain = FeaturePyramid(randomise(model).eval())
    x = torch.rand(1, 3, 32, 32)
    blocks = plain.trunk.blocks if host == "timm" else plain.trunk.encoder.layers

    def calls_and_gradients(net: FeaturePyramid) -> tuple[int, list[Tensor]]:
        calls: list[int] = []
        handle = blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
        net.zero_grad()
        sum(m.square().sum() for m in net(x)).backward()
        handle.remove()
        return len(calls), [p.grad.clone() for p in net.parameters() if p.grad is not None]

    once, expected = calls_and_gradients(plain)
    plain.set_grad_checkpointing()
    twice, gradients = calls_and_gradients(plain)
    assert (once, twice) == (1, 2)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch 2.15 deprecates TorchScript
@pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning")  # from torch's own check
def test_torchscript_where_the_host_allows() -> None:
    x = torch.rand(1, 3, 32, 32)
    in_torchvision = convstem.feature_pyramid(torchvision.models.get_model("vit_nano_4_convstem")).eval()
    maps = torch.jit.script(in_torchvision)(x)
    assert list(maps) == ["0", "1", "2", "3", "4"]
    torch.testing.assert_close(maps, dict(in_torchvision(x)))
    finest = pyramid(out_indices=(0,)).eval()
    torch.testing.assert_close(torch.jit.script(finest)(x), finest(x))
    # Control: timm's own ViT feature extractor cannot be scripted either, since forward_intermediates cannot.
    for timms in (pyramid(), timm.create_model("vit_tiny_patch16_224", features_only=True, depth=3)):
        with pytest.raises(RuntimeError, match="forward_intermediates"):
            torch.jit.script(timms)


@pytest.mark.full
def test_export() -> None:
    model, x = pyramid().eval(), torch.rand(2, 3, 32, 32)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    y = torch.rand(3, 3, 32, 32)
    assert not torch.equal(model(y)[0], model(x.new_zeros(3, 3, 32, 32))[0])  # negative control
    for a, b in zip(program.module()(y), model(y), strict=True):
        torch.testing.assert_close(a, b)


def test_pickle_deepcopy_and_state_dict() -> None:
    model, x = randomise(pyramid()).eval(), torch.rand(1, 3, 32, 32)
    twin = copy.deepcopy(model)
    again = pyramid().eval()
    assert not torch.equal(again(x)[1], model(x)[1])  # negative control
    again.load_state_dict(model.state_dict())
    for other in (twin, again):
        assert all(torch.equal(a, b) for a, b in zip(other(x), model(x), strict=True))


@pytest.mark.parametrize("host", ["timm", "torchvision"])
def test_a_stem_is_frozen_inside_a_pyramid(host: str) -> None:
    model = timm.create_model(NANO) if host == "timm" else torchvision.models.get_model("vit_nano_4_convstem")
    inside = nn.ModuleDict({"encoder": convstem.feature_pyramid(model)})
    assert all(p.requires_grad for p in inside.parameters())
    convstem.freeze_stem(inside)
    frozen = {name for name, p in inside.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in inside.named_parameters() if name.startswith("encoder.stem.")}


def test_a_stem_that_lost_its_activations_is_refused() -> None:
    model = pyramid(stem_norm="batchnorm2d")
    with pytest.raises(UnsupportedModelError, match="has dropped the activations of this stem"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    theirs = convstem.feature_pyramid(torchvision.models.get_model("vit_nano_4_convstem"))
    nn.SyncBatchNorm.convert_sync_batchnorm(theirs).train()
    freeze_batch_norm_2d(pyramid()).train()


def test_a_block_is_named_once() -> None:
    model = timm.create_model(NANO)
    with pytest.raises(ArgumentError, match=r"pyramid_blocks must name each block once; got \[5, -1\]"):
        convstem.feature_pyramid(model, pyramid_blocks=[5, -1])


@pytest.mark.parametrize("prefix", ["", "encoder.model."])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("levels", mostly_in_ci([None, [0, 1], [3, 4]], [None]))
@pytest.mark.parametrize("host", ["timm", "torchvision"])
def test_the_weights_of_a_whole_model_load_into_its_pyramid(host: str, levels: Any, strict: bool, prefix: str) -> None:
    """``smp_model.load_state_dict(own, strict=False)`` once silently loaded nothing."""

    def whole() -> nn.Module:
        if host == "timm":
            return timm.create_model("vit_nano4_convstem", num_classes=3)
        return torchvision.models.get_model("vit_nano_4_convstem", num_classes=3)

    trained, pyramid = randomise(whole()), FeaturePyramid(randomise(whole(), seed=7), levels).eval()
    expected = FeaturePyramid(trained, levels).eval()
    x = torch.randn(1, 3, 32, 32)
    outer = nn.Module()
    outer.encoder = nn.Module()
    outer.encoder.model = pyramid
    with torch.no_grad():
        assert not torch.allclose(pyramid(x)[-1], expected(x)[-1])  # negative control
        found = (outer if prefix else pyramid).load_state_dict(
            {f"{prefix}{key}": value for key, value in trained.state_dict().items()}, strict=strict
        )
        assert (found.missing_keys, found.unexpected_keys) == ([], [])
        assert all(map(torch.equal, pyramid(x), expected(x)))
    pyramid.load_state_dict(expected.state_dict())  # its own keys still load


def test_a_key_that_no_model_has_is_still_unexpected() -> None:
    model = timm.create_model("vit_nano4_convstem", num_classes=3)
    pyramid = FeaturePyramid(model)
    with pytest.raises(RuntimeError, match='Unexpected key.*"stranger"'):
        pyramid.load_state_dict({**model.state_dict(), "stranger": torch.zeros(1)})
    with pytest.warns(UserWarning, match=r"no key of this state dict belongs to the feature pyramid.*\(stranger, "):
        pyramid.load_state_dict({"stranger": torch.zeros(1)}, strict=False)
