"""A single key dropped, renamed, added, transposed or reshaped is reported, in every layout, by library and command."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convstem import convert
from convstem.cli.main import main
from convstem.errors import ConversionError
from convstem.layouts.unwrap import unwrap
from tests.support.layout_cases import CASES, Case

State = dict[str, Any]


def drop(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


def rename(state: State, key: str) -> State:
    return {k if k != key else f"{key}_": v for k, v in state.items()}


def add(state: State, key: str) -> State:
    """Add a key like ``key`` with another block or layer index, or with a new first word."""
    digits = [part for part in key.replace("/", ".").split(".") if part.isdigit()]
    new = key.replace(f".{digits[0]}.", ".97.") if digits else f"extra.{key}"
    return {**state, new if new != key else f"extra.{key}": state[key]}


def transpose(state: State, key: str) -> State:
    return {**state, key: state[key].transpose(0, 1).contiguous()}


def reshape(state: State, key: str) -> State:
    return {**state, key: state[key][None]}


CORRUPTIONS = (drop, rename, add, transpose, reshape)


@functools.cache
def sound(case: Case) -> tuple[State, State]:
    """Return a checkpoint's flat state dict without dropped keys, and the facts to convert it."""
    opened = unwrap(case.hold(case.build().state_dict()), case.use_ema)
    facts = {**opened.arguments, **case.facts}
    facts.pop("architecture", None)
    state = {key: tensor.clone() for key, tensor in opened.state_dict.items()}
    kept = convert(state, case.layout, **facts).report
    return {key: tensor for key, tensor in state.items() if key not in kept.dropped}, facts


OPTIONAL = ("embeddings.register_tokens", "visual_projection.weight")
"""Without one of these a state dict is a complete other model: DINOv2 without registers, CLIP's tower alone. Missing
registers are still reported if the layout is given, or if a transformers config.json lies beside."""


def can_show(corruption: Any, key: str, tensor: torch.Tensor) -> bool:
    """Return whether shapes show the corruption; a transposed square matrix keeps its shape."""
    if corruption is transpose:
        return tensor.ndim > 1 and tensor.shape[0] != tensor.shape[1]
    return corruption is not drop or key not in OPTIONAL


@st.composite
def corrupted(draw: st.DrawFn) -> tuple[Case, str, State, State]:
    case = draw(st.sampled_from(CASES))
    corruption = draw(st.sampled_from(CORRUPTIONS))
    state, facts = sound(case)
    key = draw(st.sampled_from(sorted(k for k, tensor in state.items() if can_show(corruption, k, tensor))))
    return case, f"{corruption.__name__} {key}", corruption(state, key), facts


SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_sound_state_dict_converts(case: Case) -> None:  # negative control for the tests below
    state, facts = sound(case)
    assert len(convert(state, **facts)) > 20
    assert len(convert(state, case.layout, **facts)) > 20


@pytest.mark.full
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(corrupted())
def test_the_library_reports_it(example: tuple[Case, str, State, State]) -> None:
    case, _what, state, facts = example
    for source in (None, case.layout):
        with pytest.raises(ValueError, match=r"\w"):
            convert(state, source, **facts)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(corrupted())
def test_the_command_reports_it_and_writes_nothing(example: tuple[Case, str, State, State]) -> None:
    _case, _what, state, facts = example
    options = [f"--{name.replace('_', '-')}={_text(value)}" for name, value in facts.items() if name in OPTIONS]
    with TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(state, folder / "bad.pth")
        result = CliRunner().invoke(main, ["convert", str(folder / "bad.pth"), "--out", str(folder / "out"), *options])
        assert result.exit_code == 1, result.output
        assert result.output.startswith("Error: ")
        assert not (folder / "out").exists()


OPTIONS = ("num_heads", "stem_strides")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_missing_registers_are_reported_where_the_layout_is_known() -> None:
    case = next(case for case in CASES if case.name == "transformers DINOv2 registers")
    state, facts = sound(case)
    bad = drop(state, "embeddings.register_tokens")
    assert convert(bad, **facts).source == "transformers_dinov2"
    with pytest.raises(ValueError, match="with registers of transformers, but it lacks embeddings.register_tokens"):
        convert(bad, case.layout, **facts)


@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_key_of_every_layout(case: Case) -> None:
    state, facts = sound(case)
    silent = []
    for corruption in CORRUPTIONS:
        for key, tensor in state.items():
            if not can_show(corruption, key, tensor):
                continue
            try:
                convert(corruption(state, key), **facts)
            except ValueError:
                continue
            silent.append(f"{corruption.__name__} {key}")
    assert silent == []


def test_a_block_that_cannot_be_is_no_list_of_missing_ones() -> None:
    """A hostile key once took hours and all memory, since every tensor of a billion blocks was listed."""
    state = timm.create_model("vit_tiny_patch16_224", depth=2).state_dict()
    state["blocks.999999999.norm1.weight"] = torch.zeros(192)
    with pytest.raises(ConversionError, match="block 999999999 but has 33 tensors in all: it is damaged, or not a ViT"):
        convert(state, target="torchvision")
