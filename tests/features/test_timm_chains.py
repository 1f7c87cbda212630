"""The pyramid of timm models whose patch embedding is a chain of convolutions, and of timm's other models."""

import pytest
import timm
import torch
from timm.layers import HybridEmbed
from timm.models import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem

import convstem
from convstem.errors import UnsupportedModelError
from convstem.features import MapEmbed, chain_of_convolutions
from tests.support.assertions import randomise


def mobileclip() -> VisionTransformer:
    return randomise(timm.create_model("vit_base_mci_224", depth=2, dynamic_img_size=True, num_classes=0).eval())


def test_mobileclips_stem_gives_its_maps() -> None:
    model, x = mobileclip(), torch.randn(1, 3, 96, 64)
    pyramid = convstem.feature_pyramid(model).eval()
    assert pyramid.feature_info.reduction() == [4, 8, 16, 32]
    assert pyramid.out_channels == [192, 192, 768, 768]
    with torch.no_grad():
        maps = list(pyramid(x).values())
        assert [tuple(level.shape[2:]) for level in maps] == [(24, 16), (12, 8), (6, 4), (3, 2)]
        inside = model.patch_embed.backbone
        assert torch.equal(maps[0], inside[0](x))
        assert torch.equal(maps[1], inside[1](inside[0](x)))
        last = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
        assert not torch.equal(last, model.forward_intermediates(x, indices=1, intermediates_only=True)[0])  # control
        assert torch.equal(maps[2], last)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_projection_behind_the_chain_belongs_to_it(patch: int) -> None:
    stem = ConvStem(channels=(8, 12), depth=2, stride=(2, 2), kernel_size=3)
    stem.num_features = 12
    sizes = {"img_size": 64, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 0, "dynamic_img_size": True}
    model = VisionTransformer(embed_layer=lambda **given: HybridEmbed(stem, **{**given, "patch_size": patch}), **sizes)
    model, x = randomise(model.eval()), torch.randn(1, 3, 64, 32)
    pyramid = convstem.feature_pyramid(model).eval()
    assert [name for name, _ in chain_of_convolutions(model.patch_embed).named_children()] == ["0", "1", "proj"]
    embed = MapEmbed(model.patch_embed)
    assert (embed.feat_ratio(), embed.feat_ratio(as_scalar=False)) == (1, (1, 1))
    assert pyramid.feature_info.reduction()[: 2 + patch // 2] == [2, 4, 8][: 2 + patch // 2]
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
        level = pyramid.feature_info.reduction().index(4 * patch)
        assert torch.equal(list(pyramid(x).values())[level], expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_r_s16_p8_224", "of this VisionTransformer is a Sequential, but a pyramid takes maps from a chain"),
        ("xcit_nano_12_p16_224", r"Xcit has no conv stem \(it has a ConvPatchEmbed\), and a patch embedding"),
    ],
)
def test_others_are_refused_by_what_they_have(name: str, message: str) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(UnsupportedModelError, match="VisionTransformer has no conv stem, and a patch embedding has no"):
        convstem.feature_pyramid(model)
    with pytest.raises(UnsupportedModelError, match=message):
        convstem.feature_pyramid(timm.create_model(name))
