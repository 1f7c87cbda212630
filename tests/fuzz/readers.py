"""The readers that ``tests.fuzz`` tries: each damages a real file, reads it, and compares the result with the file."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.mutations import spoil_bytes, spoil_tree

State = dict[str, Any]


class WrongContentError(Exception):
    """A reader returned other content than the file's."""


@dataclass(frozen=True)
class Reader:
    """One reader: ``run`` makes a case in an empty folder. It returns, or raises the reader's error."""

    name: str
    run: Callable[[Random, Path], None]


def weights(random: Random, folder: Path) -> None:
    """Damage a safetensors file's header or body; the result must match an independent parser's."""
    from convstem.files.safetensors import read_weights

    content = spoil_bytes(random, small_weights())
    path = folder / "model.safetensors"
    path.write_bytes(content)
    state = {key: tensor.clone() for key, tensor in read_weights(path).items()}
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header.pop("__metadata__", None)
    body = content[8 + int.from_bytes(content[:8], "little") :]
    same_keys = state.keys() == header.keys()
    if not same_keys or any(to_bytes(state[key]) != body[slice(*header[key]["data_offsets"])] for key in state):
        raise WrongContentError("other tensors than the file's")
    if not all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point()):
        raise WrongContentError("NaN or Inf")


@functools.cache
def small_weights() -> bytes:
    """Return a file with a few tensors of different types."""
    from safetensors.torch import save

    torch.manual_seed(0)
    tensors = {"a.weight": torch.rand(3, 4), "a.bias": torch.rand(3).bfloat16(), "b": torch.arange(6).view(2, 3)}
    return save({**tensors, "scalar": torch.tensor(1.5), "half": torch.rand(2, 2).half()}, {"format": "pt"})


def to_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's bytes as in a file."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def config(random: Random, folder: Path) -> None:
    """Damage a ``config.json`` and load the model: it must have the file's tensors, and load if verified."""
    import convstem

    original = saved_model()
    (folder / "model.safetensors").symlink_to(original / "model.safetensors")
    (folder / "README.md").symlink_to(original / "README.md")
    text = (original / "config.json").read_bytes()
    spoilt = spoil_bytes(random, text) if random.random() < 0.2 else spoil_tree(random, json.loads(text))
    (folder / "config.json").write_bytes(spoilt)
    verified = random.random() < 0.1 and convstem.verify(folder).ok
    try:
        model = convstem.load(folder)
    except convstem.ConvStemError as error:
        if verified:
            raise WrongContentError(f"verified, but: {error}") from error
        raise
    compare(model.state_dict(), convstem.load(original).state_dict())


@functools.cache
def saved_model() -> Path:
    """Return a folder with the embedded model; it stays until the process ends."""
    import tempfile

    import convstem

    folder = tempfile.TemporaryDirectory(prefix="convstem-fuzz-")
    _KEPT.append(folder)
    return Path(convstem.pull("vit_nano4_convstem.cifar10", out=folder.name))


_KEPT: list[Any] = []


def layout(random: Random, folder: Path) -> None:
    """Damage a state dict's keys, shapes, types or nesting and convert it; the result must be the model's tensors."""
    from convstem import convert

    name = random.choice(sorted(state_dicts()))
    state = dict(state_dicts()[name])
    spoil_state(random, state)
    for _ in range(random.choice((0, 0, 1, 2))):
        state = random.choice(WRAPPERS)(state)
    result = convert(state, **({"stem_strides": (2, 2), "num_heads": 3} if name == "torchvision" else {"num_heads": 3}))
    expected = convert(state_dicts()["timm"], num_heads=3).state_dict
    compare(result.state_dict, expected)


@functools.cache
def state_dicts() -> dict[str, State]:
    """Return the embedded model's weights by layout."""
    import timm

    from convstem import convert

    state = timm.create_model("vit_nano4_convstem", pretrained=True).state_dict()
    return {"timm": state, "torchvision": convert(state, target="torchvision", num_heads=3).state_dict}


WRAPPERS: tuple[Callable[[State], State], ...] = (
    lambda state: {"model": state},
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"state_dict": state, "arch": "vit_nano4_convstem", "optimizer": {"state": {}}},
    lambda state: {f"module.{key}": value for key, value in state.items()},
)


NO_KEYS: tuple[Any, ...] = (7, None, ("a",), "", ".")


def spoil_state(random: Random, state: State) -> None:
    """Change a state dict in one place, or in none."""
    key = random.choice(sorted(state))
    value = state[key]
    changes: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: state.pop(key),
        lambda: state.update({key + random.choice(("_", ".0", "x")): state.pop(key)}),
        lambda: state.update({spoil_bytes(random, key.encode()).decode("utf-8", "replace"): state.pop(key)}),
        lambda: state.update({random.choice(NO_KEYS): value}),
        lambda: state.update({key: random.choice((None, 7, "x", [1], {"a": value}, {}))}),
        lambda: state.update({key: value[None]}),
        lambda: state.update({key: value.reshape(-1)[:-1]}),
        lambda: state.update({key: value.new_zeros(0)}),
        lambda: state.update({key: value.to_sparse() if value.ndim else None}),
    )
    random.choice(changes)()


def registry(random: Random, folder: Path) -> None:
    """Damage a file of the registry; the records read must match the file."""
    from convstem.registry import tables
    from convstem.registry.records import ModelSpec, WeightsSpec

    kinds: tuple[tuple[str, type], ...] = (("architectures.json", ModelSpec), ("weights.json", WeightsSpec))
    file, record = random.choice(kinds)
    text = (tables.data_dir("registry") / file).read_bytes()
    (folder / file).write_bytes(
        spoil_bytes(random, text) if random.random() < 0.5 else spoil_tree(random, json.loads(text))
    )
    records: dict[str, Any] = tables.make_rows(file, tables.read_tables(folder / file), record)
    for name, row in json.loads((folder / file).read_bytes()).items():
        for field, value in row.items():
            if plain(getattr(records[name], field)) != plain(value):
                raise WrongContentError(f"{name}.{field} is {getattr(records[name], field)!r}, the file says {value!r}")


def plain(value: Any) -> Any:
    """Return a value with lists for tuples, and NaN equal to itself."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def compare(actual: State, expected: State) -> None:
    """Raise unless two state dicts are equal, values and types."""
    if actual.keys() != expected.keys():
        raise WrongContentError(f"other keys: {sorted(set(actual) ^ set(expected))[:3]}")
    for key, tensor in expected.items():
        if actual[key].dtype != tensor.dtype or not torch.equal(actual[key], tensor):
            raise WrongContentError(f"{key} differs")


READERS = {reader.name: reader for reader in (
    Reader("config", config), Reader("layout", layout), Reader("registry", registry), Reader("weights", weights)
)}  # fmt: skip
