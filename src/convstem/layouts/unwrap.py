"""Extracts the state dict from a training script's checkpoint: containers, key prefixes, model settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convstem.errors import ArgumentTypeError, ConversionError
from convstem.layouts.comparison import some_of
from convstem.layouts.rows import Drop, match, reason_to_drop

RAW, AVERAGED = "raw", "averaged"

PREPROCESSING = ("mean", "std")
"""Settings that are fields of timm's pretrained cfg, not arguments of the model."""


@dataclass
class Unwrapped:
    """A flat state dict, and facts from what was around it."""

    state_dict: dict[str, Any]
    path: list[str] = field(default_factory=list)
    """Containers and prefixes that were opened, outermost first."""
    weights: str = RAW
    """``raw``, or ``averaged`` for the exponential moving average of training."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Key -> why it was left out."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """timm's arguments stated in a container, such as ``num_heads``, and ``architecture``, the model's name there."""
    preprocessing: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """``mean`` and ``std`` from a normalisation layer around the model or from the script's arguments."""
    layout: str | None = None
    """The layout, if the wrapping alone proves it."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Container:
    """Keys under which a training script saves the raw and the averaged weights."""

    raw: str
    averaged: str
    whose: str
    usual: str = RAW
    """The one that its authors use when a checkpoint has both."""


CONTAINERS = (
    Container("model_state", "ema_state", "pycls"),
    Container("model_state_dict", "state_dict_ema", "revisiting-at"),
    Container("state_dict", "state_dict_ema", "timm's train.py and others"),
    Container("model", "model_ema", "torchvision's references and others"),
    Container("module", "module_ema", "DeepSpeed"),
    Container("model", "ema", "EdgeCrafter and other DETRs"),
    Container("module", "module_ema", "their averaged weights, beside a counter"),
    Container("student", "teacher", "DINO, DINOv2 and DINOv3, which evaluate the teacher", usual=AVERAGED),
)


@dataclass(frozen=True)
class Prefix:
    """A prefix of keys, stripped only if ``outside`` and ``beside`` cover every key without it."""

    text: str
    outside: tuple[Drop, ...] = ()
    beside: tuple[str, ...] = ()
    """Keys without the prefix that still belong to the model, such as a classifier."""
    averaged: bool | None = None
    """Whether its weights are averaged; None if the prefix does not show it."""
    layout: str | None = None


_NORMALISATION = tuple(Drop(f"normalize.{name}", "preprocessing; the config keeps it") for name in ("mean", "std"))
_PREDICTOR = Drop("predictor.{*}", "the predictor is only for pre-training")
_PRETRAINING = tuple(Drop(keys, "only pre-training uses it") for keys in (
    "dino_loss.{*}", "ibot_patch_loss.{*}", "koleo_loss.{*}", "gram_loss.{*}", "gram_teacher.{*}", "criterion.{*}",
    "dino_head.{*}", "ibot_head.{*}", "head.mlp.{*}", "head.last_layer.{*}", "projection_head.{*}",
    "prediction_head.{*}", "student.dino_head.{*}", "student.ibot_head.{*}", "teacher.dino_head.{*}",
    "teacher.ibot_head.{*}", "student_head.{*}", "teacher_head.{*}",
))  # fmt: skip
"""Losses and heads beside the backbone in DINO, DINOv2, DINOv3 and lightly's modules."""

_STUDENT = "the raw twin of the averaged teacher"
_TEACHER = "the averaged twin of the student; --use-ema takes it instead"
_TEXT = (
    Drop("text_model.{*}", "the text tower is not part of the image model"),
    Drop("text_projection.weight", "the text tower is not part of the image model"),
    Drop("logit_scale", "compares images with texts"),
    Drop("logit_bias", "compares images with texts"),
)

_SHARED = "projects into the space that images and texts share"
_OPEN_CLIPS = (
    *(Drop(keys, "the text tower is not part of the image model")
      for keys in ("text.{*}", "transformer.{*}", "token_embedding.weight", "positional_embedding", "ln_final.{p}",
                   "text_projection", "text_projection.{p}", "attn_mask", "context_length", "vocab_size")),
    Drop("input_resolution", "the image size, known from the positions"),
    *(Drop(keys, "compares images with texts") for keys in ("logit_scale", "logit_bias")),
)  # fmt: skip

_TOWERS = ("clip.", "clip_model.", "encoder.", "image_encoder.", "timm_model.", "vision_encoder.", "vision_tower.",
           "visual_encoder.")  # fmt: skip
"""Names that other projects give to the whole ViT inside their model."""

PREFIXES = (
    Prefix("module.", (Drop("n_averaged", "counts the averaging steps"),)),
    Prefix("_orig_mod."),
    Prefix(
        "base_encoder.",
        (Drop("momentum_encoder.{*}", "the averaged twin of the encoder; --use-ema takes it instead"), _PREDICTOR),
        averaged=False,
        layout="moco_v3",
    ),
    Prefix(
        "momentum_encoder.",
        (Drop("base_encoder.{*}", "the raw twin of the averaged encoder"), _PREDICTOR),
        averaged=True,
        layout="moco_v3",
    ),
    Prefix("teacher.backbone.", (*_PRETRAINING, Drop("student.{*}", _STUDENT)), averaged=True),
    Prefix("student.backbone.", (*_PRETRAINING, Drop("teacher.{*}", _TEACHER)), averaged=False),
    Prefix("teacher_backbone.", (*_PRETRAINING, Drop("student_backbone.{*}", _STUDENT)), averaged=True),
    Prefix("student_backbone.", (*_PRETRAINING, Drop("teacher_backbone.{*}", _TEACHER)), averaged=False),
    Prefix("backbone.", _PRETRAINING),
    Prefix("base_model.", _NORMALISATION),
    Prefix("model.", _NORMALISATION),
    Prefix(
        "vit.",
        (Drop("decoder.{*}", "MAE's decoder is only for pre-training"),),
        beside=("classifier.{p}", "encoder.layer.{i}.{*}"),  # version 5 saves MSN's blocks without the prefix
    ),
    Prefix("dinov2.", beside=("classifier.{p}",)),
    Prefix("dinov2_with_registers.", beside=("classifier.{p}",)),
    Prefix("vision_model.", _TEXT, beside=("classifier.{p}", "visual_projection.weight")),
    Prefix("visual.trunk.", (*_OPEN_CLIPS, Drop("visual.head.{*}", _SHARED))),
    Prefix("visual.", _OPEN_CLIPS),
    Prefix("pretrained.", (Drop("depth_head.{*}", "the head that estimates depth"),)),
    *(Prefix(tower, (Drop("decoder.{*}", "a decoder"), Drop("segmentation_head.{*}", "a head"))) for tower in _TOWERS),
    Prefix("opt/target/", (Drop("opt/state/{*}", "state of the optimizer"),)),
    Prefix("params/img/", (Drop("params/{*}", "the text tower is not part of the image model"),)),
    Prefix("params/", (Drop("opt/{*}", "state of the optimizer"),)),
)


def unwrap(checkpoint: Mapping[str, Any], use_ema: bool | None = None) -> Unwrapped:
    """Return the state dict inside a checkpoint.

    Args:
        checkpoint: what ``torch.load`` returned, or a state dict.
        use_ema: take the averaged weights; None takes the usual or, by the recorded errors, better ones.

    Raises:
        ArgumentTypeError: not a mapping.
        ConversionError: no or an invalid state dict, or no averaged weights although ``use_ema`` asks for them.
    """
    if not isinstance(checkpoint, Mapping):
        raise ArgumentTypeError(
            "a checkpoint is a mapping of tensors by key, alone or as a training script saves them; got "
            f"{type(checkpoint).__name__}: pass model.state_dict(), or the result of torch.load"
        )
    opened = Unwrapped(dict(checkpoint))
    while _nested(opened.state_dict):
        _open(opened, use_ema)
    odd = [repr(key) for key in opened.state_dict if not isinstance(key, str)]
    if odd:
        raise ConversionError(f"the keys of a state dict are text; this one has {some_of(odd)}")
    while _strip(opened, use_ema):
        pass
    _unstack(opened)
    if use_ema and opened.weights != AVERAGED:
        inside = f" inside {' '.join(opened.path)}" if opened.path else ""
        raise ConversionError(f"there are no averaged weights{inside}: leave use_ema (--use-ema) out")
    if not opened.state_dict:
        raise ConversionError("this state dict is empty")
    wrong = [key for key, value in opened.state_dict.items() if not _is_dense(value)]
    if wrong:
        raise ConversionError(f"a state dict holds dense tensors, unlike {some_of(wrong)}")
    return opened


def _is_dense(value: Any) -> bool:
    return hasattr(value, "shape") and not any(getattr(value, kind, False) for kind in ("is_sparse", "is_quantized"))


def _nested(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in content.values())


def _open(opened: Unwrapped, use_ema: bool | None) -> None:
    content = opened.state_dict
    if "classy_state_dict" in content:
        _open_classy(opened)
        return
    present = {container: _present(content, container) for container in CONTAINERS}
    container = max(present, key=lambda one: (RAW in present[one], len(present[one])))
    names = present[container]
    if not names:
        raise ConversionError(
            f"no state dict in this checkpoint: it holds {', '.join(sorted(map(str, content))[:8])}; expected one of "
            f"{', '.join(sorted({name for c in CONTAINERS for name in (c.raw, c.averaged)}))}"
        )
    kind = _choose(opened, names, use_ema, container.usual)
    _take_settings(opened)
    opened.weights = kind if opened.weights == RAW else AVERAGED
    opened.path.append(str(names[kind]))
    opened.state_dict = dict(content[names[kind]])


def _take_settings(opened: Unwrapped) -> None:
    for name, value in _read_settings(opened.state_dict, opened.notes).items():
        known = opened.preprocessing if name in PREPROCESSING else opened.arguments
        known[name] = value


def _present(content: Mapping[str, Any], container: Container) -> dict[str, str]:
    names = {RAW: container.raw, AVERAGED: container.averaged}
    return {kind: name for kind, name in names.items() if isinstance(content.get(name), Mapping)}


def _choose(opened: Unwrapped, names: Mapping[str, Any], use_ema: bool | None, usual: str) -> str:
    """Return which of the weights to take, ``raw`` or ``averaged``."""
    raw, averaged = (_number(opened.state_dict.get(key)) for key in ("test_err", "ema_err"))
    if use_ema is None and len(names) == 2 and raw is not None and averaged is not None:
        kind = RAW if raw <= averaged else AVERAGED
        opened.notes.append(f"{kind} weights taken, which have the lower error (raw {raw}, averaged {averaged})")
        return kind
    wanted = usual if use_ema is None else AVERAGED if use_ema else RAW
    if len(names) == 2 and wanted == RAW:
        opened.notes.append(f"it has averaged weights too, as {names[AVERAGED]!r}: use_ema (--use-ema) takes them")
    return wanted if wanted in names else next(iter(names))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _open_classy(opened: Unwrapped) -> None:
    """Open a ClassyVision checkpoint, which keeps the trunk and heads apart. Heads are keyed by block and id."""
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
    """Strip one prefix if possible. Return whether one was stripped."""
    for prefix in PREFIXES:
        if use_ema is not None and prefix.averaged not in (None, use_ema):
            continue
        outside = [key for key in opened.state_dict if not key.startswith(prefix.text)]
        if len(outside) == len(opened.state_dict):
            continue
        reasons = {key: reason_to_drop(key, prefix.outside) for key in outside}
        beside = {key for key in outside if any(match(keys, key) is not None for keys in prefix.beside)}
        if all(reason or key in beside for key, reason in reasons.items()):
            _take_prefix(opened, prefix, {key: reason for key, reason in reasons.items() if reason})
            return True
    return False


def _take_prefix(opened: Unwrapped, prefix: Prefix, outside: Mapping[str, str]) -> None:
    for key, reason in outside.items():
        opened.dropped["".join(p for p in opened.path if p[-1] in "./") + key] = reason
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
    """Split the blocks that big_vision stacks for scan: in each of their tensors the first axis is the block."""
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


def _read_settings(content: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the model's settings in a container, and note those that could not be read.

    Settings only spare the user an argument, so unreadable ones are no reason to refuse the weights.

    Returns:
        timm's arguments, ``mean`` and ``std`` of the preprocessing, and ``architecture``, the model's name there.
    """
    found: dict[str, Any] = {}
    for key, read in _READERS.items():
        if content.get(key) is None:
            continue
        try:
            found |= _of_their_kinds(read(content[key]))
        except Exception as error:  # the content is arbitrary, and YAML has its own errors
            notes.append(
                f"the checkpoint's {key!r} could not be read ({type(error).__name__}): nothing is taken from it"
            )
    return found


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and 0 < len(value) < 1 << 10 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "architecture": lambda value: isinstance(value, str),
    "img_size": lambda value: _is_size(value) or (_are_numbers(value) and all(map(_is_size, value))),
    "mean": _are_numbers,
    "norm_eps": lambda value: _is_number(value) and value > 0,
    "num_heads": _is_size,
    "std": lambda value: _are_numbers(value) and min(value) > 0,
    "stem_strides": lambda value: _are_numbers(value) and all(map(_is_size, value)),
    "stride": _is_size,
}
"""A validity test for each setting."""


def _of_their_kinds(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are stated; raise ``ConversionError`` for an invalid one."""
    stated = {name: value for name, value in settings.items() if value is not None}
    wrong = [name for name, value in stated.items() if not _KINDS[name](value)]
    if wrong:
        raise ConversionError(f"{', '.join(wrong)} must be a positive number, or text for a name; pass it yourself")
    return stated


_LARGEST_YAML = 1 << 18
"""Largest configuration in characters; pycls's have about four thousand."""


def _pycls_settings(text: Any) -> dict[str, Any]:
    import yaml

    config = yaml.safe_load(text) if isinstance(text, str) and len(text) < _LARGEST_YAML else {}
    vit = (config or {}).get("VIT", {})
    return {
        "num_heads": vit.get("NUM_HEADS"),
        "stem_strides": tuple(vit.get("C_STEM_STRIDES") or ())[:-1] or None,
        "norm_eps": (config or {}).get("LN", {}).get("EPS"),
    }


def _classy_settings(arguments: Any) -> dict[str, Any]:
    model = arguments.get("config", {}).get("model", {}) if isinstance(arguments, Mapping) else {}
    layers = model.get("conv_stem_layers") or []
    strides = tuple(layer["stride"] if isinstance(layer, Mapping) else layer[1] for layer in layers)
    return {"num_heads": model.get("num_heads"), "stem_strides": strides or None}


def _script_settings(arguments: Any) -> dict[str, Any]:
    """Return a training script's settings. timm's train.py saves the model's arguments, torchvision's only its name."""
    values = arguments if isinstance(arguments, Mapping) else vars(arguments)
    given = values.get("model_kwargs") or {}
    names = ("num_heads", "stem_strides", "norm_eps", "img_size", "stride")
    preprocessing = {name: tuple(values[name]) for name in ("mean", "std") if values.get(name)}
    return {**{name: given.get(name) for name in names}, **preprocessing, "architecture": values.get("model")}


_READERS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "cfg": _pycls_settings,
    "input_args": _classy_settings,
    "args": _script_settings,
    "arch": lambda name: {"architecture": name if isinstance(name, str) else None},
}
