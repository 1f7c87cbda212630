"""A layout's evaluation preprocessing."""

from typing import Any

import pytest

import convstem
from tests.support.layout_cases import CASES

TOLD: dict[str, dict[str, Any]] = {
    "robustbench S": {"crop_pct": 0.875, "interpolation": "bicubic"},
    "moco_v3 fine-tuned": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "edgecrafter backbone": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "transformers SigLIP": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}


@pytest.mark.parametrize("name", TOLD)
def test_images(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    converted = convstem.convert(case.hold(case.build().state_dict()), **case.facts)
    assert {field: converted.pretrained_cfg.get(field) for field in TOLD[name]} == TOLD[name]
