"""Our copies of other projects' modules have the keys and shapes of the originals.

``real_layouts.json`` records a tiny model (images of 32 pixels, patches of 16, width 24, two blocks) built once by each
project's own code: every key with its shape, and the repository's commit.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import convstem
from convstem.errors import ConversionError
from tests.support import reference_vits as vits
from tests.support.layout_cases import CASES

State = dict[str, Any]

REAL = json.loads((Path(__file__).parents[1] / "support" / "real_layouts.json").read_text(encoding="utf-8"))
STATES = {f"{name}: {state}": keys for name, found in REAL.items() for state, keys in found["states"].items()}


def pretraining() -> State:
    (case,) = [case for case in CASES if case.name == "moco_v3 pre-training"]
    held = case.hold(case.build().state_dict())["state_dict"]
    return {key.removeprefix("module."): tensor for key, tensor in held.items()}


def classy(part: str) -> State:
    model: Any = vits.ClassyViT().classy_state()["model"]
    return model["trunk"] if part == "trunk" else model["heads"]["trunk_output"]["default_head"]


def normalised() -> State:
    return vits.Normalised(vits.robust(), [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]).state_dict()


RESTATED: dict[str, Callable[[], State]] = {
    "moco_v3: conv stem": lambda: vits.MocoViT().state_dict(),
    "moco_v3: pre-training": pretraining,
    "robustbench: S": normalised,
    "revisiting_at: S": lambda: vits.robust().state_dict(),
    "revisiting_at: M": lambda: vits.robust(medium=True).state_dict(),
    "revisiting_at: normalised": normalised,
    "classyvision: trunk": lambda: classy("trunk"),
    "classyvision: head": lambda: classy("head"),
    "pycls: conv stem": lambda: vits.PyclsViT().state_dict(),
    "pycls: pooled": lambda: vits.PyclsViT(token=False).state_dict(),
}


def shapes(state: State) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in state.items()}


@pytest.mark.parametrize("name", RESTATED)
def test_the_restated_module_is_the_real_one(name: str) -> None:
    assert shapes(RESTATED[name]()) == STATES[name]


HEAD = STATES["classyvision: head"]

# Whole state dicts as their projects save them: (wrapper, layout, facts that shapes do not show).
WHOLE: dict[str, tuple[Callable[[State], State], str, State]] = {
    "moco_v3: conv stem": (dict, "moco_v3", {}),
    "moco_v3: patchify": (dict, "moco_v3", {}),
    "moco_v3: pre-training": (dict, "moco_v3", {}),
    "robustbench: S": (dict, "robustbench", {"num_heads": 3}),
    "revisiting_at: S": (dict, "robustbench", {"num_heads": 3}),
    "revisiting_at: M": (dict, "robustbench", {"num_heads": 3}),
    "revisiting_at: normalised": (dict, "robustbench", {"num_heads": 3}),
    **{
        f"classyvision: {trunk}": (
            lambda trunk: {"classy_state_dict": {"base_model": {"model": {
                "trunk": trunk, "heads": {"trunk_output": {"default_head": ones(HEAD)}}}}}},
            "classyvision",
            {"num_heads": 3, "stem_strides": (2, 2, 2, 2)},
        )
        for trunk in ("trunk", "patchify trunk", "pooled trunk")
    },
    "pycls: conv stem": (dict, "pycls", {"num_heads": 3, "stem_strides": (2, 2, 2, 2)}),
    "pycls: pooled": (dict, "pycls", {"num_heads": 3, "stem_strides": (2, 2, 2, 2)}),
    "pycls: patchify": (dict, "pycls", {"num_heads": 3}),
}  # fmt: skip


def ones(keys: dict[str, list[int]]) -> State:
    return {key: torch.ones(shape) for key, shape in keys.items()}


@pytest.mark.parametrize("name", WHOLE)
def test_every_real_key_becomes_timms_and_comes_back(name: str) -> None:
    hold, layout, facts = WHOLE[name]
    source = "moco_v3" if name == "moco_v3: patchify" else None  # a plain ViT has timm's keys
    converted = convstem.convert(hold(ones(STATES[name])), source, **facts)
    assert converted.source == layout
    kept = {key for keys in converted.report.mapped.values() for key in keys}
    given = len(STATES[name]) + (len(HEAD) if layout == "classyvision" else 0)
    assert len(kept) + len(converted.report.dropped) == given
    back = convstem.convert(converted.state_dict, "timm", layout)
    assert len(back) == len(kept)


def test_a_head_with_a_hidden_layer_is_refused() -> None:
    hold, _, facts = WHOLE["classyvision: trunk"]
    held = hold(ones(STATES["classyvision: trunk"]))
    heads = held["classy_state_dict"]["base_model"]["model"]["heads"]["trunk_output"]
    heads["default_head"] = ones(STATES["classyvision: head with a hidden layer"])
    with pytest.raises(ConversionError, match="its head has a hidden layer"):
        convstem.convert(held, **facts)


def test_every_state_is_compared_or_converted() -> None:
    assert set(STATES) == {*RESTATED, *WHOLE, "classyvision: head with a hidden layer"}
