"""Converts the state dicts of ViTs between layouts, and accounts for every key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from convstem.errors import ArgumentError, ConversionError
from convstem.layouts.architecture import Given, resolve
from convstem.layouts.engine import Layout, Translation, counterpart, fill, match, stem_layers, translate
from convstem.layouts.positions import is_moco_sincos
from convstem.layouts.recognise import LAYOUTS, recognise, require_layout
from convstem.layouts.report import ConversionReport
from convstem.layouts.sizes import Sizes, measure, mismatches
from convstem.layouts.unwrap import Unwrapped, unwrap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Converted(Mapping[str, "Tensor"]):
    """A converted state dict: a mapping of its tensors by key, and what is known about the model it belongs to."""

    state_dict: dict[str, Tensor]
    source: str
    target: str
    report: ConversionReport
    sizes: Sizes = field(repr=False)
    _given: Given = field(repr=False)
    _positions: Tensor = field(repr=False)
    """timm's position embedding."""

    def __getitem__(self, key: str) -> Tensor:
        """Return one tensor."""
        return self.state_dict[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self.state_dict)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.state_dict)

    @cached_property
    def _fixed_positions(self) -> bool:
        return self.sizes.class_token and is_moco_sincos(self._positions)

    @cached_property
    def _model(self) -> tuple[str, dict[str, Any]]:
        return resolve(self.sizes, LAYOUTS[self.source], self._given, self._fixed_positions)

    @property
    def architecture(self) -> str:
        """timm's name of the architecture.

        Raises:
            ArgumentError: shapes and layout do not tell; the message asks for ``architecture`` or ``num_heads``.
        """
        return self._model[0]

    @property
    def model_args(self) -> dict[str, Any]:
        """The JSON-plain arguments of ``timm.create_model`` besides the name."""
        return dict(self._model[1])

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What the checkpoint says about classes and preprocessing, by fields of timm's pretrained cfg."""
        return {
            "architecture": self.architecture,
            "num_classes": self.sizes.num_classes,
            **LAYOUTS[self.source].preprocessing,
            **self._given.preprocessing,
        }

    @property
    def norm_eps(self) -> float:
        """Epsilon of the trunk's LayerNorms."""
        return float({**LAYOUTS[self.source].facts, **self._given.facts}.get("norm_eps", 1e-6))

    @property
    def patchify(self) -> bool:
        """Whether the model is a plain ViT, without a conv stem."""
        return self.sizes.stem is None


def convert(
    state_dict: Mapping[str, Any],
    source: str | None = None,
    target: str = "timm",
    *,
    architecture: str | None = None,
    use_ema: bool | None = None,
    **facts: Any,
) -> Converted:
    """Return a ViT's state dict in another layout, every key accounted for; tensors are shared where possible.

    Args:
        state_dict: parameters and buffers by key, or a training checkpoint that holds them.
        source: its layout; default: told from the keys.
        target: layout to return.
        architecture: timm name of the model, where shapes and layout do not tell it.
        use_ema: take the averaged weights of a training checkpoint; default: the raw ones, or those that the
            checkpoint says are better.
        facts: ``num_heads``, ``stem_strides``, ``img_size`` or ``norm_eps``, where shapes and layout do not tell.

    Raises:
        ArgumentError: unknown layout, or something that only you can know is missing.
        ConversionError: not a ViT of this layout, keys missing or surplus, shapes that do not fit together, or a model
            that the target cannot express.
    """
    for name in (source, target):
        if name is not None and name not in LAYOUTS:
            raise ArgumentError(f"unknown layout {name!r}; the layouts are {', '.join(sorted(LAYOUTS))}")
    if not LAYOUTS[target].invertible:
        targets = ", ".join(sorted(name for name, layout in LAYOUTS.items() if layout.invertible))
        raise ArgumentError(f"the layout {target!r} can be read, not written; the targets are {targets}")
    opened = unwrap(state_dict, use_ema)
    layout, why = _layout(opened, source)
    given = Given.of(architecture, {**_heads(opened.state_dict, layout), **facts}, opened)
    inward, dropped = to_timm(opened.state_dict, layout)
    sizes = _check(inward, layout, given)
    outward = _outward(inward, sizes, LAYOUTS[target])
    report = ConversionReport(
        layout=layout.name,
        why=why,
        path=tuple(opened.path),
        weights=opened.weights,
        mapped={new: tuple(o for key in old for o in inward.sources[key]) for new, old in outward.sources.items()},
        dropped={**opened.dropped, **dropped},
        notes=(*opened.notes, *_epsilon_notes(sizes, layout, given), *_dtype_notes(outward.state_dict)),
    )
    converted = Converted(outward.state_dict, layout.name, target, report, sizes, given, inward.state_dict["pos_embed"])
    if source is None:
        _ = converted.architecture  # asked to find out: say now what is missing
    return converted


def _heads(state_dict: Mapping[str, Tensor], layout: Layout) -> dict[str, int]:
    """Return the number of heads, where a shape has it."""
    key, axis = layout.heads
    found = [tensor.shape[axis] for k, tensor in state_dict.items()
             if key and match(key, _own_spelling(k, layout)) is not None and tensor.ndim > axis]  # fmt: skip
    return {"num_heads": found[0]} if found else {}


def _layout(opened: Unwrapped, source: str | None) -> tuple[Layout, str]:
    if source is not None:
        return LAYOUTS[source], "given"
    if opened.layout is not None:
        return LAYOUTS[opened.layout], f"the wrapping ({' '.join(opened.path)}) is that of {opened.layout}"
    found = require_layout(opened.state_dict)
    assert found.layout is not None
    return found.layout, found.why


def to_timm(
    state_dict: Mapping[str, Tensor], layout: Layout, complete: bool = True
) -> tuple[Translation, dict[str, str]]:
    """Return a flat state dict in timm's layout, and the keys left out with their grounds.

    Args:
        state_dict: tensors by key.
        layout: their layout.
        complete: it is a whole model's, not a part of one.

    Raises:
        ConversionError: keys that the layout does not have, or lacks, or two that become one.
    """
    for refusal in layout.refusals:
        if any(match(refusal.keys, key) is not None for key in state_dict):
            raise ConversionError(f"this is {layout.title}, but {refusal.reason}")
    kept, dropped, spelled = _sort_out(state_dict, layout)
    translation = translate(kept, layout.rows, "timm", stem_layers(kept, layout))
    if translation.unknown:
        raise ConversionError(_unknown_sentence(translation.unknown, state_dict, layout))
    missing = [key for key in layout.has if key not in translation.state_dict]
    if missing and complete:
        named = ", ".join(counterpart(key, layout.rows, 0) for key in missing)
        raise ConversionError(f"this is {layout.title}, but it lacks {named}")
    translation.sources = {new: tuple(spelled.get(k, k) for k in old) for new, old in translation.sources.items()}
    return translation, dropped


def _sort_out(
    state_dict: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Return the tensors under the layout's own spelling, the keys to drop, and which spelling was replaced."""
    kept: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for key, tensor in state_dict.items():
        ground = next((drop.ground for drop in layout.drops if match(drop.keys, key) is not None), None)
        if ground is not None:
            dropped[key] = ground
            continue
        own = _own_spelling(key, layout)
        if own in kept:
            raise ConversionError(f"two keys of this state dict mean the same: {spelled.get(own, own)!r} and {key!r}")
        kept[own] = tensor
        spelled[own] = key
    return kept, dropped, spelled


def _own_spelling(key: str, layout: Layout) -> str:
    for other, own in layout.spellings:
        values = match(other, key)
        if values is not None:
            return fill(own, values)
    return key


def _unknown_sentence(unknown: list[str], state_dict: Mapping[str, Any], layout: Layout) -> str:

    some = ", ".join(sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
    found = recognise(state_dict)
    what = found.layout.title if found.layout not in (None, layout) else found.foreign
    hint = f"; this is {what}" if what else ""
    return f"{len(unknown)} of {len(state_dict)} keys are not in the layout {layout.name!r}: {some}{hint}"


def _check(inward: Translation, layout: Layout, given: Given) -> Sizes:
    """Return the sizes; raise if a key is missing or surplus, or a shape wrong."""
    shapes = {key: tuple(tensor.shape) for key, tensor in inward.state_dict.items()}
    try:
        sizes = measure(shapes)
    except ConversionError as error:
        raise ConversionError(f"{error} (timm's name of the key; the layout is {layout.name!r})") from None
    wrong = mismatches(shapes, sizes, square="img_size" not in given.facts)
    if wrong:
        named = [f"{_named(key, inward, layout)}: {what}" for key, what in sorted(wrong.items())]
        more = f"; and {len(named) - 5} more" if len(named) > 5 else ""
        raise ConversionError(f"this state dict does not fit together: {'; '.join(named[:5])}{more}")
    _check_ties(inward)
    return sizes


def _named(key: str, inward: Translation, layout: Layout) -> str:
    """Return a timm key with the name that the source has for it."""
    if layout.name == "timm":
        return key
    if key in inward.sources:
        return f"{', '.join(inward.sources[key])} ({key} in timm)"
    own = counterpart(key, layout.rows, stem_layers(inward.state_dict, LAYOUTS["timm"]))
    return key if own == key else f"{own} ({key} in timm)"


def _check_ties(inward: Translation) -> None:
    owners: dict[tuple[int, int], str] = {}
    for key, tensor in inward.state_dict.items():
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        other = owners.setdefault((tensor.data_ptr(), tensor.numel()), key)
        if other != key:
            names = ", ".join(sorted({*inward.sources[other], *inward.sources[key]}))
            raise ConversionError(
                f"these keys share one tensor: {names}. No ViT ties its weights, and a file would not keep the tie; "
                "clone one of them if the values are meant"
            )


def _outward(inward: Translation, sizes: Sizes, target: Layout) -> Translation:
    """Return the state dict in the target's layout."""
    for name, values in target.expresses.items():
        if getattr(sizes, name) not in values:
            raise ConversionError(f"{target.name} cannot express this model: {_INEXPRESSIBLE[name]}")
    translation = translate(inward.state_dict, target.rows, "other", stem_layers(inward.state_dict, LAYOUTS["timm"]))
    if translation.unknown:
        some = ", ".join(sorted(translation.unknown)[:5])
        raise ConversionError(f"{target.name} cannot express this model: it has no place for {some}")
    return _rooted(translation, target) if sizes.num_classes else translation


def _rooted(translation: Translation, target: Layout) -> Translation:
    prefix, classifier = target.root
    new = {key: key if match(classifier, key) is not None else prefix + key for key in translation.state_dict}
    return Translation(
        {new[key]: tensor for key, tensor in translation.state_dict.items()},
        {new[key]: sources for key, sources in translation.sources.items()},
    )


_INEXPRESSIBLE = {
    "class_token": "it has no class token",
    "class_position": "its class token has no position",
    "reg_tokens": "it has register tokens",
    "layer_scale": "it has LayerScale",
    "qk_norm": "it normalises queries and keys",
    "qkv_bias": "its qkv projection has no bias",
    "pre_norm": "it has a norm before the blocks",
    "fc_norm": "it has a norm after pooling",
    "map_pool": "it pools by attention",
    "gated_mlp": "its MLP is gated",
    "stem_norm": "its stem has another norm",
    "stem_bias": "the convolutions of its stem have no biases",
    "biased_norm": "the convolutions of its stem have biases before their norms",
}


def _epsilon_notes(sizes: Sizes, layout: Layout, given: Given) -> list[str]:
    epsilon = {**layout.facts, **given.facts}.get("norm_eps", 1e-6)
    if epsilon == 1e-6:
        return []
    how = "" if sizes.stem else "; timm's own ViT takes it as norm_layer=partial(torch.nn.LayerNorm, eps=...)"
    return [f"its LayerNorms have the epsilon {epsilon:g}, not 1e-06{how}"]


def _dtype_notes(state_dict: Mapping[str, Tensor]) -> list[str]:
    counts: dict[str, int] = {}
    for key, tensor in state_dict.items():
        if not key.endswith("num_batches_tracked"):
            name = str(tensor.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + 1
    if len(counts) < 2:
        return []
    return [f"mixed dtypes, kept as they are: {', '.join(f'{n} {name}' for name, n in sorted(counts.items()))}"]
