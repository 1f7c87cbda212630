"""Converts ViT state dicts between layouts and accounts for every key.

The preprocessing comes from the file, a name in it or its layout; otherwise it is assumed, and the report says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from convstem.errors import ArgumentError, ConversionError
from convstem.layouts.architecture import Given, resolve
from convstem.layouts.engine import check_whole, from_timm, to_timm
from convstem.layouts.recognise import LAYOUTS, require_layout
from convstem.layouts.research import is_moco_sincos
from convstem.layouts.rows import IMAGENET, Layout, match
from convstem.layouts.timm import NORM_EPS, Sizes
from convstem.layouts.unwrap import Unwrapped, unwrap

if TYPE_CHECKING:
    from torch import Tensor


_FAMILIES = ("deit", "dino", "ibot", "mae", "moco", "msn")
"""Prefixes of model names whose models were all trained with ImageNet's mean and std, in every project."""


def preprocessing(layout: Layout, sizes: Sizes, given: Given, dropped: Collection[str]) -> Mapping[str, Any]:
    """Return the known preprocessing, by field of timm's pretrained cfg; the architecture's defaults fill the rest.

    Args:
        layout: the checkpoint's layout.
        sizes: sizes read from the shapes.
        given: facts from the user and the file.
        dropped: keys that were left out, such as MAE's decoder.
    """
    return {**layout.preprocessing, **_told_by(sizes, given, dropped), **given.preprocessing}


def assumptions(layout: Layout, sizes: Sizes, given: Given, dropped: Collection[str]) -> list[str]:
    """Return a sentence for each fact that neither file nor user states and is assumed. Args: see ``preprocessing``."""
    notes = [note for name, note in layout.assumed.items() if name not in given.arguments]
    told = {**_told_by(sizes, given, dropped), **given.preprocessing}
    lacking = [name for name in ("mean", "std") if name not in told]
    if not lacking or (layout.preprocessing and not layout.fed_differently) or given.architecture:
        return notes
    usual = f"{layout.preprocessing['mean'][0]:g}" if layout.preprocessing else "as usual for the architecture"
    what, options = " and ".join(lacking), ", ".join(f"--{name}" for name in lacking)
    return [
        *notes,
        f"not in the file but assumed: its {what} ({usual}). Set {what} yourself ({options} on the command line)",
    ]


def _told_by(sizes: Sizes, given: Given, dropped: Collection[str]) -> Mapping[str, Any]:
    """Return the preprocessing implied by a name in the file, or by a feature of one family of models."""
    name = str(given.hint or "").removeprefix("timm/")
    if name.startswith(_FAMILIES):
        return IMAGENET
    if any(key.startswith(("decoder_", "decoder.")) for key in dropped):  # MAE's
        return IMAGENET
    if sizes.layer_scale and sizes.patch_size == 14:  # DINOv2's
        return IMAGENET
    return _of_timms(name) if name else {}  # torchvision's weights are read without timm


def _of_timms(name: str) -> Mapping[str, Any]:
    """Return the mean and std of a timm name, with or without a tag; empty for other projects' names."""
    from timm.models import get_pretrained_cfg, is_model

    base = name.partition(".")[0]
    if not is_model(base):
        return {}
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        cfg = get_pretrained_cfg(base)
    return {"mean": cfg.mean, "std": cfg.std} if cfg else {}


@dataclass(frozen=True)
class ConversionReport:
    """Where every key of a converted state dict came from, and which keys were left out."""

    layout: str
    why: str
    """Evidence that the state dict has this layout."""
    path: tuple[str, ...]
    """Containers and prefixes that were opened, outermost first."""
    weights: str
    """``raw`` or ``averaged``."""
    mapped: Mapping[str, tuple[str, ...]]
    """New key -> the keys it was made from."""
    dropped: Mapping[str, str]
    """Key -> why it was left out."""
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return a summary in a few lines."""
        opened = f", inside {' '.join(self.path)}" if self.path else ""
        sources = sum(map(len, self.mapped.values()))
        reasons = Counter(self.dropped.values())
        lines = [
            f"layout {self.layout} ({self.why}){opened}; {self.weights} weights",
            f"{sources} keys became {len(self.mapped)}, {len(self.dropped)} were left out",
            *(f"left out, {count}: {reason}" for reason, count in sorted(reasons.items())),
            *self.notes,
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Converted(Mapping[str, "Tensor"]):
    """A converted state dict: its tensors by key, and what is known about its model."""

    state_dict: dict[str, Tensor]
    source: str
    target: str
    report: ConversionReport
    sizes: Sizes = field(repr=False)
    _given: Given = field(repr=False)
    _positions: Tensor | None = field(repr=False)
    """timm's position embedding; None if positions are rotary."""

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
        return self._positions is not None and self.sizes.class_token and is_moco_sincos(self._positions)

    @cached_property
    def _model(self) -> tuple[str, dict[str, Any]]:
        return resolve(self.sizes, LAYOUTS[self.source], self._given, self._fixed_positions)

    @property
    def architecture(self) -> str:
        """timm's name of the architecture.

        Raises:
            ArgumentError: shapes and layout do not show it; the message asks for ``architecture`` or ``num_heads``.
        """
        return self._model[0]

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments for ``timm.create_model``, ready for JSON. Those that the name implies are left out."""
        from timm.models import resolve_pretrained_cfg

        name, args = self._model
        cfg = resolve_pretrained_cfg(name)
        head = {} if self.sizes.num_classes == cfg.num_classes else {"num_classes": self.sizes.num_classes}
        first = {} if self.sizes.in_chans == cfg.input_size[0] else {"in_chans": self.sizes.in_chans}
        return {**args, **head, **first}

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Classes and preprocessing of the checkpoint, by field of timm's pretrained cfg."""
        return {
            "architecture": self.architecture,
            "num_classes": self.sizes.num_classes,
            **preprocessing(LAYOUTS[self.source], self.sizes, self._given, self.report.dropped),
        }

    @property
    def norm_eps(self) -> float:
        """Epsilon of the trunk's LayerNorms."""
        return _epsilon(LAYOUTS[self.source], self._given)

    @property
    def patchify(self) -> bool:
        """Whether the model is a plain ViT without a conv stem."""
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
        source: its layout; default: detected from the keys.
        target: layout to return.
        architecture: timm name of the model, if shapes and layout do not show it.
        use_ema: take the averaged weights of a training checkpoint; default: the raw ones, or those that the
            checkpoint says are better.
        facts: ``num_heads``, ``stem_strides``, ``stem_last_stride``, ``stride``, ``img_size``, ``norm_eps``,
            ``act_layer``, ``mean`` or ``std``, if shapes, layout and checkpoint do not show them.

    Returns:
        A mapping of the tensors by key. Its ``report`` says where each key came from; ``architecture`` and
        ``model_args`` build the timm model.

    Raises:
        ArgumentError: unknown layout or fact, or a fact is missing that only you can know.
        ArgumentTypeError: ``state_dict`` is not a mapping.
        ConversionError: not a ViT of this layout, keys missing or surplus, shapes that do not fit together, or a model
            that the target cannot express.
        UnknownModelError: there is no ``architecture`` of this name.
    """
    for name in (source, target):
        if name is not None and name not in LAYOUTS:
            raise ArgumentError(f"unknown layout {name!r}; the layouts are {', '.join(sorted(LAYOUTS))}")
    if not LAYOUTS[target].invertible:
        targets = ", ".join(sorted(name for name, layout in LAYOUTS.items() if layout.invertible))
        raise ArgumentError(f"the layout {target!r} can only be read; the targets are {targets}")
    opened = unwrap(state_dict, use_ema)
    layout, why = _layout(opened, source)
    given = Given.of(architecture, {**_heads(opened.state_dict, layout), **facts}, opened)
    inward, dropped = to_timm(opened.state_dict, layout)
    sizes = check_whole(inward, layout, square="img_size" not in given.arguments)
    _check_head_width(sizes, LAYOUTS[target], given)
    outward = from_timm(inward, sizes, LAYOUTS[target])
    left_out = {**opened.dropped, **dropped}
    said = (*opened.notes, *_epsilon_notes(sizes, layout, given), *_dtype_notes(outward.state_dict))
    report = ConversionReport(
        layout=layout.name,
        why=why,
        path=tuple(opened.path),
        weights=opened.weights,
        mapped={new: tuple(o for key in old for o in inward.sources[key]) for new, old in outward.sources.items()},
        dropped=left_out,
        notes=(*said, *assumptions(layout, sizes, given, left_out)),
    )
    converted = Converted(
        outward.state_dict, layout.name, target, report, sizes, given, inward.state_dict.get("pos_embed")
    )
    if source is None:
        _ = converted.architecture  # raise now if a fact is missing
    return converted


def _heads(state_dict: Mapping[str, Tensor], layout: Layout) -> dict[str, int]:
    """Return num_heads if a shape shows it."""
    template, axis = layout.heads
    for key, tensor in state_dict.items() if template else ():
        if match(template, layout.own_spelling(key)) is not None and tensor.ndim > axis:
            return {"num_heads": tensor.shape[axis]}
    return {}


def _check_head_width(sizes: Sizes, target: Layout, given: Given) -> None:
    """Raise ``ConversionError`` unless the heads have the target layout's fixed width."""
    width = target.head_width
    if width and sizes.embed_dim != width * given.arguments.get("num_heads", max(sizes.embed_dim // width, 1)):
        raise ConversionError(f"{target.name} cannot express this model: its heads are not {width} wide")


def _layout(opened: Unwrapped, source: str | None) -> tuple[Layout, str]:
    if source is not None:
        return LAYOUTS[source], "given"
    if opened.layout is not None:
        return LAYOUTS[opened.layout], f"wrapped as in {opened.layout}: {' '.join(opened.path)}"
    found = require_layout(opened.state_dict)
    assert found.layout is not None
    return found.layout, found.why


def _epsilon(layout: Layout, given: Given) -> float:
    return float({**layout.arguments, **given.arguments}.get("norm_eps", NORM_EPS))


def _epsilon_notes(sizes: Sizes, layout: Layout, given: Given) -> list[str]:
    epsilon = _epsilon(layout, given)
    if epsilon == NORM_EPS:
        return []
    how = "" if sizes.stem else "; timm's own ViT takes it as norm_layer=partial(torch.nn.LayerNorm, eps=...)"
    return [f"its LayerNorms have the epsilon {epsilon:g}, not {NORM_EPS:g}{how}"]


def _dtype_notes(state_dict: Mapping[str, Tensor]) -> list[str]:
    counts: dict[str, int] = {}
    for key, tensor in state_dict.items():
        if not key.endswith("num_batches_tracked"):
            name = str(tensor.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + 1
    if len(counts) < 2:
        return []
    return [f"mixed dtypes, kept as they are: {', '.join(f'{n} {name}' for name, n in sorted(counts.items()))}"]
