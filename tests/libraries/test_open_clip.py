"""The real open_clip with our names as the image tower of a CLIP model; the plain ViT is the control."""

from typing import Any

import pytest
import torch
from torch import nn

import convstem
from tests.support.assertions import relative_error

open_clip = pytest.importorskip("open_clip", reason="open-clip-torch is not installed: pip install .[libraries]")
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("default")]  # its own warnings are its own

TEXT = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}


def clip(name: str) -> Any:
    """Return a small CLIP model whose image tower is a timm model."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    torch.manual_seed(0)
    vision = CLIPVisionCfg(timm_model_name=name, timm_pool="token", timm_proj="linear", image_size=224)
    return CustomTextCLIP(32, vision, CLIPTextCfg(**TEXT))


def images() -> torch.Tensor:
    return torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def encoded(model: Any) -> torch.Tensor:
    return model.eval().encode_image(images())


def test_the_towers_features_are_the_sources() -> None:
    plain, ours = clip("vit_tiny_patch16_224"), clip("vit_ti16_convstem")
    expected = encoded(plain)
    ours.visual.head.load_state_dict(plain.visual.head.state_dict())
    assert relative_error(encoded(ours), expected) > 0.1
    ours.visual.trunk.load_state_dict(convstem.transplant(plain.visual.trunk).state_dict())
    assert relative_error(encoded(ours), expected) < 1e-5


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_ti16_convstem"])
def test_a_locked_tower_stays_and_the_rest_trains(name: str) -> None:
    model = clip(name)
    before = {key: tensor.clone() for key, tensor in model.visual.trunk.state_dict().items()}
    model.lock_image_tower(unlocked_groups=0, freeze_bn_stats=True)
    text = torch.randint(1, 100, (4, 8), generator=torch.Generator().manual_seed(2))
    update = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    model.train()
    for _ in range(3):
        image_features, text_features, scale = model(images(), text)[:3]
        logits = scale * image_features @ text_features.T
        loss = nn.functional.cross_entropy(logits, torch.arange(4))
        losses.append(float(loss))
        update.zero_grad()
        loss.backward()
        update.step()
    assert losses[-1] != losses[0]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.visual.trunk.state_dict().items())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_ti16_convstem"])
def test_the_last_groups_can_be_unlocked(name: str) -> None:
    model = clip(name)
    model.lock_image_tower(unlocked_groups=2)
    trained = {key.split(".")[0] for key, p in model.visual.trunk.named_parameters() if p.requires_grad}
    assert trained == {"blocks", "norm"}
    assert not any(p.requires_grad for p in model.visual.trunk.patch_embed.parameters())
