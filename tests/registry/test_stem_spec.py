"""The walk over a stem's layers, which every count, table and builder takes, against the stem that timm runs."""

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
