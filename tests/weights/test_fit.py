"""``fit`` refuses bad state dicts before timm's own filter sees them."""

import pytest
import timm
import torch

from convstem.errors import CheckpointError
from convstem.weights.fit import fit


@pytest.mark.parametrize("shape", [(), (3,), (65, 64), (0, 65, 64), (1, 0, 64)])
def test_positions_that_nobody_could_resample(shape: tuple[int, ...]) -> None:
    model = timm.create_model("vit_nano4_convstem")
    state = model.state_dict()
    assert fit(dict(state), model).keys() == state.keys()  # negative control
    with pytest.raises(
        CheckpointError, match=r"pos_embed has the shape \[.*\] in the file, and \[1, 65, \d+\] in the model"
    ):
        fit({**state, "pos_embed": torch.zeros(shape)}, model)
