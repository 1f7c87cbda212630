"""The walk over a stem's layers (used by every count, table and builder) matches the stem that timm runs."""

from typing import Any

import pytest
import timm
import torch

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import StemSpec, check_img_size


@pytest.mark.parametrize("img_size", [(32, 32), (32, 24), (30, 21)])  # the last is rounded up
@pytest.mark.parametrize("in_chans", [1, 3])
def test_layers_are_those_that_run(img_size: Any, in_chans: int) -> None:
    stem = StemSpec((5, 7, 9), (2, 1, 2), (3, 5, 3))
    model = timm.create_model("vit_nano4_convstem", in_chans=in_chans, dynamic_img_size=True, **stem.model_args)
    x, run = torch.rand(1, in_chans, *img_size), []
    for layer in list(model.patch_embed.backbone)[:-1]:
        x = layer(x)
        run.append((*layer.conv.weight.shape[1::-1], layer.conv.kernel_size[0], layer.conv.stride[0], *x.shape[2:]))
    layers = stem.layers(img_size, in_chans)
    assert [
        (layer.in_chans, layer.channels, layer.kernel_size, layer.stride, layer.height, layer.width) for layer in layers
    ] == run


@pytest.mark.parametrize("last", [(1, 1), (3, 1), (3, 2), (2, 2), (4, 4)])
@pytest.mark.parametrize("layers", [((2, 2), (3, 3)), ((4, 2), (4, 2))])  # the second: patches without padding
@pytest.mark.parametrize("img_size", [(64, 48), (61, 50)])
def test_the_last_convolution_is_the_one_that_runs(
    last: tuple[int, int], layers: tuple[tuple[int, int], tuple[int, int]], img_size: tuple[int, int]
) -> None:
    stem = StemSpec((5, 7), *layers, last_kernel_size=last[0], last_stride=last[1])
    name = {"patch_size": stem.patch_size, "img_size": stem.patch_size * 2, "dynamic_img_size": True}
    model = timm.create_model("vit_nano4_convstem", depth=1, **name, **stem.model_args)
    x = torch.rand(1, 3, *img_size)
    assert stem.grid(img_size) == model.patch_embed.backbone(x).shape[2:]
    assert stem.grid(img_size) == model.patch_embed.dynamic_feat_size(img_size)
    made = stem.last_layer(96, img_size)
    conv = model.patch_embed.backbone[-1].conv
    assert (made.kernel_size, made.stride, made.padding, made.channels) == (
        conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.out_channels)  # fmt: skip
    assert model(x).shape == (1, 10)
    assert model.patch_embed.stem_spec == stem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_kernel_size": 2}, "kernel size equal to the stride; got kernel size 2 with stride 1"),
        ({"last_kernel_size": 3, "last_stride": 4}, "got kernel size 3 with stride 4"),
        ({"last_stride": 0}, "stem_last_stride must be a positive integer; got 0"),
        ({"last_kernel_size": [3]}, r"stem_last_kernel_size must be a positive integer; got \[3\]"),
        ({"kernel_sizes": (4, 3)}, "got kernel size 4 with stride 2"),
    ],
)
def test_convolutions_that_skip_pixels_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        StemSpec((4, 8), **change)


def test_by_default_the_image_is_one_patch() -> None:
    stem = StemSpec((4, 8))
    assert stem.layers() == stem.layers(4) == stem.layers((4, 4))
    assert [(layer.height, layer.width) for layer in stem.layers()] == [(2, 2), (1, 1)]
    assert [(layer.height, layer.width) for layer in stem.layers(224)] == [(112, 112), (56, 56)]


@pytest.mark.parametrize(("size", "choices"), [((30, 32), "28x32 or 32x32"), ((3, 3), "4x4 or 4x4"), ((0, 4), "4x4")])
def test_image_sizes_are_multiples_of_the_patch(size: tuple[int, int], choices: str) -> None:
    check_img_size((32, 4), 4)
    with pytest.raises(ArgumentError, match=f"img_size must be .* 4; got {size[0]}x{size[1]}: use {choices}"):
        check_img_size(size, 4)
    with pytest.raises(ArgumentError, match=f"^image_size .*{choices}.*, or pass another model to accept any size"):
        check_img_size(size, 4, "image_size", "another model")
