"""The image sizes that a traced model accepts. The formats themselves run with --full."""

import re
import warnings
from types import SimpleNamespace

import pytest
import timm
import torch

from convstem.errors import ArgumentError
from convstem.inference import LARGEST_BATCH, LARGEST_GRID, _check_sizes, quiet, trace


def test_any_batch_and_any_grid_up_to_the_largest() -> None:
    model = timm.create_model("vit_nano4_convstem", depth=1, dynamic_img_size=True).eval()
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):  # at the floors
        with pytest.raises(ArgumentError, match="cannot export a model that takes any image size: update torch"):
            trace(model, torch.randn(2, 3, 32, 32))
        return
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


@pytest.mark.parametrize("module", ["executorch", "onnxscript", "onnx", "openvino", "torch", "torchao"])
def test_what_exporters_say_of_themselves_is_kept_from_users(module: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet():
            for name in (module, f"{module}.deep.inside"):
                warnings.warn_explicit("of its own", UserWarning, "x.py", 1, name)
                warnings.warn_explicit("of its own", DeprecationWarning, "x.py", 1, name)
            warnings.warn_explicit("of theirs", UserWarning, "x.py", 1, f"{module}s")  # negative control
        warnings.warn_explicit("afterwards", UserWarning, "x.py", 1, module)
    assert [str(warning.message) for warning in caught] == ["of theirs", "afterwards"]


def test_a_program_that_fails_at_another_size_is_refused() -> None:
    def fail(images: torch.Tensor) -> None:
        raise RuntimeError(f"expected 32, got {images.shape[-1]}")

    said = rf"torch {re.escape(torch.__version__)} cannot export a model that takes any image size: update torch, or"
    with pytest.raises(ArgumentError, match=said) as caught:
        _check_sizes(SimpleNamespace(module=lambda: fail), torch.zeros(1, 3, 48, 48))
    assert "got 48" in str(caught.value.__cause__)
