"""Missing, surplus and differing tensors are reported in one wording."""

from typing import Any

import pytest
import torch

from convstem.layouts.comparison import differences, some_of

MODEL = {"a.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2), "bn.num_batches_tracked": torch.tensor(0)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"a.weight": None}, "the file lacks what the model needs: a.weight"),
        ({"b": torch.zeros(1)}, "the model has no place for: b"),
        ({"a.weight": torch.zeros(3, 2)}, "shapes differ: a.weight (file [3, 2], model [2, 3])"),
        ({"head.bias": torch.zeros(1)}, "shapes differ: head.bias (file [1], model [2])"),
        ({"bn.num_batches_tracked": torch.zeros(1)}, "shapes differ: bn.num_batches_tracked (file [1], model [])"),
        (
            {"a.weight": torch.zeros(2, 3, dtype=torch.int8)},
            "kinds of numbers differ: a.weight (file integers, model floating-point numbers)",
        ),
        ({"bn.num_batches_tracked": None}, ""),
        ({"bn2.num_batches_tracked": torch.tensor(0)}, ""),
        ({"bn.num_batches_tracked": torch.tensor(0.0)}, ""),  # from `{k: v.half() for ...}`
    ],
)
def test_each_difference(changes: Any, said: str) -> None:
    file = {key: tensor for key, tensor in {**MODEL, **changes}.items() if tensor is not None}
    assert differences(file, MODEL) == said


def test_what_may_differ_is_not_compared() -> None:
    file = {key: tensor for key, tensor in MODEL.items() if key != "head.bias"}
    assert differences(file, MODEL) == "the file lacks what the model needs: head.bias"
    assert differences(file, MODEL, free=("head.",)) == ""
    assert differences({"b": torch.zeros(1)}, MODEL, free=("head.",)) == (
        "the file lacks what the model needs: a.weight; the model has no place for: b"
    )


def test_five_keys_are_named_and_the_others_counted() -> None:
    assert some_of("edcba") == "a, b, c, d, e"
    assert some_of("fedcba") == "a, b, c, d, e and 1 more"
    assert some_of("gfedcba") == "a, b, c, d, e and 2 more"
