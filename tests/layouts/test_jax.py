"""The layout of JAX checkpoints implies their pixel range, and every key is mapped."""

import pytest
import timm
import torch

import convstem
from tests.support.assertions import randomise
from tests.support.jax_checkpoints import npz


def test_their_images_and_keys() -> None:
    model = randomise(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=5))
    state = model.state_dict()
    theirs = {name: torch.from_numpy(array.copy()) for name, array in npz(state, 3, big_vision=False).items()}
    converted = convstem.convert(theirs, num_heads=3)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) for key in state)
    assert converted.pretrained_cfg["mean"] == converted.pretrained_cfg["std"] == (0.5, 0.5, 0.5)
    theirs |= {"pre_logits/kernel": torch.ones(192, 192), "pre_logits/bias": torch.ones(192)}
    with pytest.raises(ValueError, match="its head has a hidden layer .pre_logits, then tanh.*the logits would differ"):
        convstem.convert(theirs, num_heads=3)
