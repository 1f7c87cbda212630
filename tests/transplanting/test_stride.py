"""``convstem.transplant(source, stride=...)`` compared with the plain model at this stride, or on averaged images."""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import convstem
from convstem.errors import ArgumentError, UnsupportedModelError
from convstem.registry.stem_spec import StemSpec
from convstem.stem.norms import init_stem
from convstem.transplanting.grid import as_plain
from tests.support.assertions import randomise, relative_error
from tests.support.everyday import one_in

SMALL = {"embed_dim": 96, "num_heads": 3}

TRUNKS = [
    ("vit_tiny_patch16_224", {}),
    ("vit_small_patch16_dinov3", SMALL),  # rotary positions, normalised; registers
    ("eva02_base_patch16_clip_224", SMALL),  # rotary positions, scaled to a grid of 16 x 16
    ("vit_pe_core_tiny_patch16_384", SMALL),  # the same with an offset, and learned ones
    ("beit_base_patch16_224", SMALL),  # relative positions in a table
    ("deit3_small_patch16_224", SMALL),
    ("deit_tiny_distilled_patch16_224", {}),
    ("vit_base_patch32_224", SMALL),
]

TIED = [
    ("vit_base_patch16_rope_224", SMALL, "rotary positions that count tokens, without a reference grid"),
    ("vit_base_patch16_rope_mixed_224", SMALL, "rotary positions that count tokens"),
    ("vit_relpos_small_patch16_224", SMALL, "relative positions that count tokens"),
    ("cait_xxs24_224", {"depth_token_only": 1}, "positions that timm cannot resample .no set_input_size."),
    ("convit_tiny", {}, "positions that timm cannot resample"),
    ("samvit_base_patch16_224", SMALL, "window attention, with windows that count tokens"),
]


def source_of(name: str, size: tuple[int, int] = (64, 96), **args: object) -> Any:
    return randomise(timm.create_model(name, depth=1, img_size=size, num_classes=5, **args)).eval().double()


def images(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple")  # timm's, about BEiT's table
@pytest.mark.parametrize(("name", "args", "halvings"), one_in(3, [(*row, n) for row in TRUNKS for n in (1, 2)]))
def test_denser_tokens(name: str, args: dict[str, object], halvings: int) -> None:
    source = source_of(name, **args)
    patch = source.patch_embed.patch_size[0]
    stride = patch >> halvings
    twin: Any = convstem.transplant(source, stride=stride)
    grid = (64 // stride, 96 // stride)
    x = images(64, 96)
    source.patch_embed.proj.stride = (stride, stride)  # as people do by hand
    source.patch_embed.strict_img_size = source.patch_embed.flatten = False
    plain = F.conv2d(x, source.patch_embed.proj.weight, source.patch_embed.proj.bias, stride)
    tokens = twin.patch_embed.backbone(x)
    assert tokens.shape[2:] == grid
    assert relative_error(tokens[..., : plain.shape[2], : plain.shape[3]], plain) < 1e-12
    source.patch_embed.proj.stride = (patch, patch)
    source = source_of(name, **args)
    beyond = None if twin.transplant_report.border == "zero" else torch.tensor(twin.patch_embed.lowest) - 0.25
    whole = as_plain(copy.deepcopy(source), stride, beyond)
    expected = whole.forward_features(x)
    assert relative_error(twin.forward_features(x), expected) < 1e-11
    assert relative_error(twin(x), whole(x)) < 1e-11
    init_stem(twin.patch_embed, "none")  # negative control
    assert relative_error(twin.forward_features(x), expected) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "args", "times"),
    one_in(5, [(name, args, n) for name, args, *_ in [*TRUNKS, *TIED] if name != "convit_tiny" for n in (2, 4)]),
)
def test_coarser_tokens(name: str, args: dict[str, object], times: int) -> None:
    size = (128, 192) if "patch32" in name else (64, 96)
    source = source_of(name, size, **args)
    patch = source.patch_embed.patch_size[0]
    twin: Any = convstem.transplant(source, stride=times * patch)
    assert twin.patch_embed.grid_size == source.patch_embed.grid_size
    x = images(size[0] * times, size[1] * times)
    expected = source(F.avg_pool2d(x, times))
    assert relative_error(twin(x), expected) < 1e-11
    picked = x[..., ::times, ::times]  # negative control
    assert relative_error(twin(x), source(picked)) > 1e-4


@pytest.mark.parametrize(("name", "args", "what"), TIED, ids=[name for name, *_ in TIED])
def test_positions_that_cannot_be_resampled(name: str, args: dict[str, object], what: str) -> None:
    source = timm.create_model(name, depth=1, **args)
    with pytest.raises(
        UnsupportedModelError, match=rf"cannot have more tokens than patches .stride=8.*it has {what}.*of at least 16"
    ):
        convstem.transplant(source, stride=8)


def test_swins_windows_count_tokens() -> None:
    source = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1,) * 4)
    with pytest.raises(UnsupportedModelError, match="SwinTransformer cannot have more tokens .* window attention"):
        convstem.transplant(source, stride=2)


@torch.no_grad()
@pytest.mark.parametrize("stride", [4, 8, 32, 64])
def test_everything_that_asks_a_model_about_its_grid(stride: int) -> None:
    source = source_of("vit_tiny_patch16_224", (64, 128))
    before = {key: value.clone() for key, value in source.state_dict().items()}
    twin: Any = convstem.transplant(source, stride=stride)
    height, width = 64 * max(stride // 16, 1), 128 * max(stride // 16, 1)
    grid = (height // stride, width // stride)
    embed = twin.patch_embed
    assert (embed.img_size, embed.grid_size, embed.num_patches) == ((height, width), grid, grid[0] * grid[1])
    assert (embed.feat_ratio(), embed.feat_ratio(as_scalar=False)) == (stride, (stride, stride))
    assert embed.patch_size == embed.proj.stride == (stride, stride)
    assert embed.proj.kernel_size == (16, 16)
    assert embed.dynamic_feat_size((height, width)) == grid
    assert {info["reduction"] for info in twin.feature_info} == {stride}
    assert twin.pretrained_cfg["input_size"] == (3, 224 * max(stride // 16, 1), 224 * max(stride // 16, 1))
    x = images(height, width)
    (block,) = twin.forward_intermediates(x, intermediates_only=True)
    assert block.shape == (2, 192, *grid)
    (tokens,) = twin.get_intermediate_layers(x, reshape=True)
    assert torch.equal(tokens, block)
    listed = twin.forward_features(x)[:, 1:].transpose(1, 2).unflatten(2, grid)
    assert torch.allclose(twin.forward_intermediates(x, norm=True, intermediates_only=True)[0], listed)
    twin.set_input_size(img_size=(stride * 4, stride * 8))
    assert embed.grid_size == (4, 8)
    assert twin(images(stride * 4, stride * 8)).shape == (2, 5)
    with pytest.raises(ArgumentError, match="patch size of a conv stem is the product of its strides"):
        twin.set_input_size(patch_size=2 * stride)
    assert all(torch.equal(before[key], value) for key, value in source.state_dict().items())


@torch.no_grad()
def test_positions_are_resampled_by_timms_rule() -> None:
    source = source_of("vit_tiny_patch16_224", (64, 128))
    twin: Any = convstem.transplant(source, stride=8)
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, [8, 16], old_size=[4, 8])
    assert torch.equal(twin.pos_embed, expected)
    coarser: Any = convstem.transplant(source, stride=32)
    assert torch.equal(coarser.pos_embed, source.pos_embed)


@torch.no_grad()
def test_rotary_positions_of_a_denser_grid() -> None:
    """EVA-02's coordinates get half steps. DINOv3's are relative to the image and need no change."""
    eva = source_of("eva02_base_patch16_clip_224", (64, 64), **SMALL)
    twin: Any = convstem.transplant(eva, stride=8)
    own, dense = (model.rope.get_embed().unflatten(0, shape) for model, shape in ((eva, (4, 4)), (twin, (8, 8))))
    assert torch.allclose(dense[::2, ::2], own)
    dino = source_of("vit_small_patch16_dinov3", (64, 64), **SMALL)
    twin = convstem.transplant(dino, stride=8)
    larger = timm.create_model("vit_small_patch16_dinov3", depth=1, img_size=128, **SMALL)
    assert torch.allclose(twin.rope.get_embed([8, 8]), larger.rope.get_embed([8, 8]).double(), atol=1e-6)


def test_dynamic_image_sizes() -> None:
    source = source_of("vit_tiny_patch16_224", (64, 64), dynamic_img_size=True)
    twin: Any = convstem.transplant(source, stride=8)
    (block,) = twin.forward_intermediates(images(48, 80), intermediates_only=True)
    assert block.shape == (2, 192, 6, 10)
    (block,) = twin.forward_intermediates(images(50, 81), intermediates_only=True)  # rounded up, as at any stride
    assert block.shape == (2, 192, 7, 11)


@torch.no_grad()
@pytest.mark.parametrize("stride", [8, 32])
def test_patch_14_goes_to_16_first_and_says_so(stride: int) -> None:
    source = source_of("vit_small_patch14_reg4_dinov2", (56, 56), embed_dim=96, num_heads=3)
    plain: Any = convstem.transplant(source)
    twin: Any = convstem.transplant(source, stride=stride)
    outcome = twin.transplant_report.outcome()
    assert "resized from patches of 14 pixels" in outcome
    assert f"Tokens lie {stride} pixels apart" in outcome
    if stride == 32:
        x = images(128, 128)
        assert twin.patch_embed.img_size == (128, 128)
        assert relative_error(twin(x), plain(F.avg_pool2d(x, 2))) < 1e-11
    else:
        x = images(64, 64)
        even = twin.patch_embed.backbone(x)[..., ::2, ::2]
        assert relative_error(even, plain.patch_embed.backbone(x)) < 1e-12


def test_more_bands_and_another_stem() -> None:
    source = source_of("vit_tiny_patch16_224", (64, 64))
    twin: Any = convstem.transplant(source, stride=8, in_chans=5, bands=(3, 1, 0))
    assert twin.patch_embed.grid_size == (8, 8)
    own = StemSpec((24, 96, 384), norm="none", last_kernel_size=3)
    twin = convstem.transplant(source, own, stride=8)
    assert twin.patch_embed.stem_spec == own
    assert twin.patch_embed.window == 16
    with pytest.raises(ArgumentError, match=r"stem_strides must equal patch_size 8; .* reduce the image by 16"):
        convstem.transplant(source, (24, 96, 384, 384), stride=8)


@torch.no_grad()
@pytest.mark.parametrize("stride", [4, 8, 32])
def test_torchvision(stride: int) -> None:
    source = randomise(torchvision.models.VisionTransformer(64, 16, 1, 3, 96, 192, num_classes=5)).eval().double()
    twin: Any = convstem.transplant(source, stride=stride)
    size = 64 * max(stride // 16, 1)
    assert (twin.image_size, twin.patch_size) == (size, stride)
    x = images(size, size)
    if stride > 16:
        assert relative_error(twin(x), source(F.avg_pool2d(x, stride // 16))) < 1e-11
    else:
        padded = F.pad(x, (0, 16 - stride, 0, 16 - stride))
        expected = F.conv2d(padded, source.conv_proj.weight, source.conv_proj.bias, stride)
        assert relative_error(twin.conv_proj(x), expected) < 1e-12
        assert twin(x).shape == (2, 5)
    maps = convstem.feature_pyramid(twin)(x)
    assert [size // level.shape[-1] for level in maps.values()] == [
        s for s in (2, 4, 8, 16, 32) if s <= max(32, stride)
    ]


BAD = [
    (0, "a whole number of at least 1; got 0"),
    (8.0, "a whole number of at least 1; got 8.0"),
    (24, "times or divided by a power of two, such as 8, 16, 32, 64; got stride=24"),
    (128, "stride=128 is larger than the image, 64x96 pixels: pass a smaller stride, or a larger img_size"),
]


@pytest.mark.parametrize(("stride", "message"), BAD)
def test_bad_strides(stride: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        convstem.transplant(source_of("vit_tiny_patch16_224"), stride=stride)


def test_the_patch_size_is_the_default() -> None:
    source = source_of("vit_tiny_patch16_224")
    twin, same = convstem.transplant(source), convstem.transplant(source, stride=16)
    assert same.transplant_report == twin.transplant_report
    assert "stride" not in same._model_args
    assert all(torch.equal(tensor, same.state_dict()[key]) for key, tensor in twin.state_dict().items())
    assert isinstance(same, nn.Module)
