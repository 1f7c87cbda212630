"""The real captum and grad-cam explain a transplant like its source, since both compute the same."""

import pytest
import timm
import torch
from torch import Tensor

import convstem
from tests.support.assertions import relative_error

pytest.importorskip("captum", reason="captum is not installed: pip install .[libraries]")
pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed: pip install .[libraries]")
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("default")]  # their own warnings are theirs

GRID = 4
"""Tokens along one side of a 64-pixel image."""


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=16 * GRID, depth=2, num_classes=10).eval()


@pytest.fixture(scope="module")
def other() -> torch.nn.Module:
    """Negative control: a model of the same kind with other weights."""
    torch.manual_seed(1)
    return timm.create_model("vit_ti16_convstem", img_size=16 * GRID, depth=2, num_classes=10).eval()


@pytest.fixture(scope="module")
def ours(plain: torch.nn.Module) -> torch.nn.Module:
    return convstem.transplant(plain)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16 * GRID, 16 * GRID, generator=torch.Generator().manual_seed(1)) * 2 - 1


def attributions(model: torch.nn.Module, x: Tensor) -> Tensor:
    """Return each pixel's contribution to class 3, [batch, channels, height, width]."""
    from captum.attr import IntegratedGradients

    return IntegratedGradients(model).attribute(x, target=3, n_steps=8)


def test_captum_attributes_to_the_same_pixels(
    plain: torch.nn.Module, ours: torch.nn.Module, other: torch.nn.Module, images: Tensor
) -> None:
    expected = attributions(plain, images)
    assert relative_error(attributions(other, images), expected) > 0.1
    assert relative_error(attributions(ours, images), expected) < 1e-3


def to_maps(tokens: Tensor) -> Tensor:
    """Return tokens [batch, 1 + height * width, embed_dim] as maps [batch, embed_dim, height, width]."""
    return tokens[:, 1:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)


def class_activation(model: torch.nn.Module, layer: torch.nn.Module, x: Tensor, tokens: bool = True) -> Tensor:
    """Return the map of class 3, [batch, height, width]."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with GradCAM(model, [layer], reshape_transform=to_maps if tokens else None) as cam:
        return torch.from_numpy(cam(input_tensor=x, targets=[ClassifierOutputTarget(3)] * len(x)))


def test_grad_cam_of_tokens_is_the_sources(
    plain: torch.nn.Module, ours: torch.nn.Module, other: torch.nn.Module, images: Tensor
) -> None:
    expected = class_activation(plain, plain.blocks[-1].norm1, images)
    assert expected.shape == (2, 16 * GRID, 16 * GRID)
    assert relative_error(class_activation(other, other.blocks[-1].norm1, images), expected) > 0.1
    assert relative_error(class_activation(ours, ours.blocks[-1].norm1, images), expected) < 1e-3


def test_grad_cam_of_the_stem_needs_no_reshape(ours: torch.nn.Module, images: Tensor) -> None:
    """The stem already gives maps, finer than a patchify ViT's tokens."""
    found = class_activation(ours, ours.patch_embed.backbone[1], images, tokens=False)
    assert found.shape == (2, 16 * GRID, 16 * GRID)
    assert found.max() > 0
