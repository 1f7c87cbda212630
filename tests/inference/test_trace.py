"""The sizes of images that a traced model takes; the formats themselves are run with --full."""

import timm
import torch

from convstem.inference import LARGEST_BATCH, LARGEST_GRID, trace


def test_any_batch_and_any_grid_up_to_the_largest() -> None:
    model = timm.create_model("vit_nano4_convstem", depth=1, dynamic_img_size=True).eval()
    program = trace(model, torch.randn(2, 3, 32, 32))
    ranges = sorted((int(found.lower), int(found.upper)) for found in program.range_constraints.values())
    assert {(1, LARGEST_BATCH), (2, LARGEST_GRID)} <= set(ranges)
    assert ranges.count((2, LARGEST_GRID)) == 2
    images = torch.randn(3, 3, 36, 44)
    with torch.no_grad():
        assert torch.allclose(program.module()(images), model(images), atol=1e-5)


def test_what_is_not_dynamic_takes_the_example_alone() -> None:
    model = timm.create_model("vit_nano4_convstem", depth=1).eval()
    assert trace(model, torch.randn(2, 3, 32, 32), dynamic=False).range_constraints == {}
