"""Models built with classes as arguments, such as UNI2-h: no config can hold these, and the error has the remedy."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import convstem
from convstem.errors import ArgumentError
from convstem.publishing.push import stage
from tests.support.assertions import randomise, relative_error

SIZES: dict[str, Any] = {
    **{"depth": 1, "embed_dim": 384, "num_heads": 6, "num_classes": 0, "reg_tokens": 8, "img_size": 224},
    **{"mlp_ratio": 2.66667 * 2, "init_values": 1e-5, "no_embed_class": True},
}


def test_push_says_which_arguments_and_the_name_that_does_it(tmp_path: Path) -> None:
    swiglu = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    given = randomise(timm.create_model("vit_giant_patch14_224", **SIZES, **swiglu)).eval()
    with pytest.raises(ArgumentError, match="this model was built with .*mlp_layer=.*vit_giant_patch14_reg4_dinov2"):
        convstem.push(convstem.transplant(given), "org/name", license="mit", dry_run=True)
    named = timm.create_model("vit_giant_patch14_reg4_dinov2", **SIZES)
    named.load_state_dict(given.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(named.eval()(x), given(x)) < 1e-6
    stage(convstem.transplant(named), tmp_path)
    assert (tmp_path / "config.json").is_file()
