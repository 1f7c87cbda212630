"""A written model's tolerance against its original is smaller if both can run in float64."""

import pytest
import timm
import torch

from convstem.publishing import folder
from convstem.publishing.folder import LARGE_TOLERANCE, TOLERANCE, _difference


@torch.no_grad()
def test_a_model_too_large_for_double_precision_is_given_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("vit_nano4_convstem").eval()
    usual = TOLERANCE[torch.float32]
    assert usual < LARGE_TOLERANCE
    assert _difference(model, model) == (0.0, usual)
    monkeypatch.setattr(folder, "LARGEST_DOUBLE", 0)
    assert _difference(model, model) == (0.0, LARGE_TOLERANCE)
