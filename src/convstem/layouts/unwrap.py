"""Takes the state dict out of what training scripts save around it: containers, and stacks of key prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convstem.errors import ArgumentTypeError, ConversionError
from convstem.layouts.prefixes import PREFIXES, Prefix
from convstem.layouts.settings import read_settings
from convstem.layouts.templates import match

RAW, AVERAGED = "raw", "averaged"


@dataclass
class Unwrapped:
    """A flat state dict, and what lay around it."""

    state_dict: dict[str, Any]
    path: list[str] = field(default_factory=list)
    """Containers and prefixes that were opened, outermost first."""
    weights: str = RAW
    """``raw``, or ``averaged`` for the exponential moving average of training."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Key -> why it was left out."""
    facts: dict[str, Any] = field(default_factory=dict)
    """timm arguments that a container states, such as ``num_heads``."""
    preprocessing: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """``mean`` and ``std`` of a normalisation layer around the model, or of the script's arguments."""
    layout: str | None = None
    """The layout, where the wrapping alone proves it."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Container:
    """Names under which a training script keeps the raw and the averaged weights."""

    raw: str
    averaged: str
    whose: str


CONTAINERS = (
    Container("model_state", "ema_state", "pycls"),
    Container("model_state_dict", "state_dict_ema", "revisiting-at"),
    Container("state_dict", "state_dict_ema", "timm's train.py and others"),
    Container("model", "model_ema", "torchvision's references and others"),
)


def unwrap(checkpoint: Mapping[str, Any], use_ema: bool | None = None) -> Unwrapped:
    """Return the state dict inside a checkpoint.

    Args:
        checkpoint: what ``torch.load`` returned, or a state dict.
        use_ema: take the averaged weights; None takes the raw ones, or what the checkpoint says is better.

    Raises:
        ArgumentTypeError: it is no mapping.
        ConversionError: there is no state dict in it, more than one that could be meant, or no averaged weights.
    """
    if not isinstance(checkpoint, Mapping):
        raise ArgumentTypeError(
            f"a checkpoint is a mapping: tensors by key, or what a training script saved around them; got "
            f"{type(checkpoint).__name__}: pass model.state_dict(), or what torch.load returned"
        )
    opened = Unwrapped(dict(checkpoint))
    while _nested(opened.state_dict):
        _open(opened, use_ema)
    odd = sorted(repr(key) for key in opened.state_dict if not isinstance(key, str))
    if odd:
        raise ConversionError(f"the keys of a state dict are text; this one has {', '.join(odd[:5])}")
    while _strip(opened, use_ema):
        pass
    _unstack(opened)
    if use_ema and opened.weights != AVERAGED:
        inside = f" inside {' '.join(opened.path)}" if opened.path else ""
        raise ConversionError(f"there are no averaged weights{inside}: leave use_ema (--use-ema) out")
    if not opened.state_dict:
        raise ConversionError("this state dict is empty")
    wrong = sorted(key for key, value in opened.state_dict.items() if not _is_dense(value))
    if wrong:
        raise ConversionError(f"a state dict holds dense tensors; {', '.join(wrong[:5])} is none")
    return opened


def _is_dense(value: Any) -> bool:
    return hasattr(value, "shape") and not getattr(value, "is_sparse", False)


def _nested(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in content.values())


def _open(opened: Unwrapped, use_ema: bool | None) -> None:
    content = opened.state_dict
    if "classy_state_dict" in content:
        _open_classy(opened)
        return
    names = next((found for kind in (RAW, AVERAGED) for c in CONTAINERS if kind in (found := _present(content, c))), {})
    if not names:
        raise ConversionError(
            f"no state dict in this checkpoint: it holds {', '.join(sorted(map(str, content))[:8])}; expected one of "
            f"{', '.join(sorted({c.raw for c in CONTAINERS}))}"
        )
    kind = _choose(opened, names, use_ema)
    _take_settings(opened)
    opened.weights = kind
    opened.path.append(str(names[kind]))
    opened.state_dict = dict(content[names[kind]])


def _take_settings(opened: Unwrapped) -> None:
    facts, notes = read_settings(opened.state_dict)
    opened.preprocessing |= {name: facts.pop(name) for name in ("mean", "std") if name in facts}
    opened.facts |= facts
    opened.notes += notes


def _present(content: Mapping[str, Any], container: Container) -> dict[str, str]:
    names = {RAW: container.raw, AVERAGED: container.averaged}
    return {kind: name for kind, name in names.items() if isinstance(content.get(name), Mapping)}


def _choose(opened: Unwrapped, names: Mapping[str, Any], use_ema: bool | None) -> str:
    """Return which of the weights to take, ``raw`` or ``averaged``."""
    raw, averaged = (_number(opened.state_dict.get(key)) for key in ("test_err", "ema_err"))
    if use_ema is None and len(names) == 2 and raw is not None and averaged is not None:
        kind = RAW if raw <= averaged else AVERAGED
        opened.notes.append(f"{kind} weights taken: their error is the lower one (raw {raw}, averaged {averaged})")
        return kind
    if AVERAGED in names and RAW in names and not use_ema:
        opened.notes.append(f"averaged weights are there too, as {names[AVERAGED]!r}: use_ema (--use-ema) takes them")
    return AVERAGED if AVERAGED in names and (use_ema or RAW not in names) else RAW


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _open_classy(opened: Unwrapped) -> None:
    """ClassyVision keeps the trunk and every head apart; heads are told by where they are attached and their id."""
    try:
        state = opened.state_dict["classy_state_dict"]["base_model"]["model"]
        trunk, heads = state["trunk"], [head for block in state.get("heads", {}).values() for head in block.values()]
    except (AttributeError, KeyError, TypeError) as error:
        raise ConversionError(
            "no model in this ClassyVision checkpoint: expected classy_state_dict > base_model > model, which has a "
            "trunk and heads"
        ) from error
    if len(heads) > 1:
        raise ConversionError(f"this ClassyVision checkpoint has {len(heads)} heads; expected one: remove the others")
    _take_settings(opened)
    opened.path.append("classy_state_dict")
    opened.state_dict = {**trunk, **{f"head.{k}": v for head in heads for k, v in head.items()}}
    opened.layout = "classyvision"


def _strip(opened: Unwrapped, use_ema: bool | None) -> bool:
    """Strip one prefix, if one can be; tell whether."""
    for prefix in PREFIXES:
        if prefix.averaged is not None and prefix.averaged != bool(use_ema):
            continue
        outside = [key for key in opened.state_dict if not key.startswith(prefix.text)]
        if len(outside) == len(opened.state_dict):
            continue
        grounds = {key: next((d.ground for d in prefix.outside if match(d.keys, key) is not None), None)
                   for key in outside}  # fmt: skip
        beside = {key for key in outside if any(match(keys, key) is not None for keys in prefix.beside)}
        if all(ground or key in beside for key, ground in grounds.items()):
            _take_prefix(opened, prefix, {key: ground for key, ground in grounds.items() if ground})
            return True
    return False


def _take_prefix(opened: Unwrapped, prefix: Prefix, outside: Mapping[str, str]) -> None:
    for key, ground in outside.items():
        opened.dropped["".join(p for p in opened.path if p[-1] in "./") + key] = ground
        if key.startswith("normalize."):
            values = tuple(round(float(value), 6) for value in opened.state_dict[key].flatten())
            opened.preprocessing[key.removeprefix("normalize.")] = values
    if "n_averaged" in outside or prefix.averaged:
        opened.weights = AVERAGED
    opened.layout = prefix.layout or opened.layout
    opened.path.append(prefix.text)
    rest = {key: value for key, value in opened.state_dict.items() if key not in outside}
    opened.state_dict = {key.removeprefix(prefix.text): value for key, value in rest.items()}


_STACKED = "/encoderblock/"


def _unstack(opened: Unwrapped) -> None:
    """Take blocks apart that big_vision scanned over: their tensors have the blocks as first axis."""
    if not any(_STACKED in key for key in opened.state_dict):
        return
    flat: dict[str, Any] = {}
    for key, value in opened.state_dict.items():
        if _STACKED in key:
            flat |= {key.replace(_STACKED, f"/encoderblock_{i}/"): part for i, part in enumerate(value)}
        else:
            flat[key] = value
    opened.state_dict = flat
    opened.path.append("blocks stacked by scan")
