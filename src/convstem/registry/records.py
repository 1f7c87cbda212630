"""Frozen records: architectures and their sizes, trunks, weights, weights of other projects. No torch in this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from convstem.errors import ArgumentError
from convstem.registry.stem_spec import (
    StemSpec,
    check_heads,
    check_img_size,
    check_stem_patch,
    choice,
    default_stem,
    positive_ints,
)

POS_EMBEDS = {"learn": "VisionTransformer", "rope": "Eva", "sincos2d": "VisionTransformer"}
"""Position embedding (learned, rotary in each block, or the fixed sine-cosine of MoCo v3) -> timm's class."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The usual normalisation of images, by channel."""

_STEM_FIELDS = ("strides", "kernel_sizes", "norm", "act", "bias", "last_kernel_size", "last_stride")
"""Fields of ``StemSpec`` that a row has with the prefix ``stem_``."""

TRANSFORMS = ("convert", "none", "transplant")
"""How a weights file becomes a checkpoint of its architecture: converted from its authors' layout, unchanged, or with
its patch embedding transplanted into the stem."""


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # only declares fields
class Architecture:
    """What each of our names stands for: a conv stem on a trunk. Field names are timm's keyword arguments."""

    name: str
    """timm name."""
    patch_size: int
    """Pixels per token along each axis; the product of the stem's strides."""
    embed_dim: int
    depth: int
    num_heads: int
    """Of attention; 0 in a trunk without attention, such as a mixer."""
    img_size: int | tuple[int, int] = 224
    """In pixels; (height, width) if they differ."""
    num_classes: int = 1000
    torchvision: str | None = None
    """torchvision name; None if torchvision's VisionTransformer cannot express the architecture."""
    trunk: str | None = None
    """The timm patchify architecture with the same trunk; its pretrained weights can be transplanted."""
    source: str = ""
    """Source of the numbers: paper and table, or upstream file."""

    @property
    def stem(self) -> StemSpec:
        """The stem, unless the caller gives another: the default one for this patch size and width."""
        return default_stem(self.patch_size, self.embed_dim)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        return (3, *((self.img_size,) * 2 if isinstance(self.img_size, int) else self.img_size))


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Architecture):
    """An architecture of our own families: a row of ``registry/architectures.json``.

    With a ``trunk`` it is timm's whole trunk on the default stem, so a pretrained patch embedding keeps its function:
    for every input at patch 8 and 16, for pixels in range at patch 32. The paper's ViT_C have one block fewer.
    """

    source: str
    mlp_ratio: float = 4.0
    stem_channels: tuple[int, ...] = ()
    """Output channels of each layer but the last; empty: those of ``default_stem`` for the number of input channels."""
    stem_strides: tuple[int, ...] = ()
    stem_kernel_sizes: tuple[int, ...] = ()
    stem_norm: str = "batchnorm2d"
    stem_act: str = "relu"
    stem_bias: bool = False
    stem_last_kernel_size: int = 1
    stem_last_stride: int = 1
    img_size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_pct: float = 0.9
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    fixed_input_size: bool = True
    """Whether the positions are tied to one image size."""
    paper_ids: str = ""
    """The architecture's paper, if it is not the stem's; in timm's form, ``arXiv:NUMBER``."""
    paper_name: str = ""
    pos_embed: str = "learn"
    trunk_args: Mapping[str, Any] = field(default_factory=dict)
    """Further JSON-plain arguments of timm's class."""

    def __post_init__(self) -> None:
        """Validate the row."""
        for name in ("patch_size", "embed_dim", "depth", "num_heads", "img_size"):
            positive_ints(name, getattr(self, name))
        if self.num_classes < 0:
            raise ArgumentError(f"num_classes must be 0 (no head) or more; got {self.num_classes}")
        check_stem_patch(self.stem, self.patch_size)
        check_heads(self.embed_dim, self.num_heads)
        choice("pos_embed", self.pos_embed, tuple(POS_EMBEDS))
        check_img_size((self.img_size, self.img_size), self.patch_size)
        if self.torchvision and not self.fits_torchvision:
            raise ArgumentError(
                "torchvision's VisionTransformer has no LayerNorm stem, fixed position embedding or trunk_args, and a "
                "1x1 at the stem's end; leave `torchvision` out of this entry"
            )

    @property
    def fits_torchvision(self) -> bool:
        """Whether torchvision's ``VisionTransformer`` can express the architecture, with or without a name there."""
        return self.stem.fits_torchvision and self.pos_embed == "learn" and not self.trunk_args

    @cached_property
    def stem(self) -> StemSpec:
        """The architecture's stem for RGB images."""
        return self.stem_for(3)

    def stem_for(self, in_chans: int) -> StemSpec:
        """Return the architecture's stem for images of ``in_chans`` channels."""
        channels = self.stem_channels or default_stem(self.patch_size, self.embed_dim, in_chans).channels
        return StemSpec(channels, **{name: getattr(self, f"stem_{name}") for name in _STEM_FIELDS})


@dataclass(frozen=True, kw_only=True)
class TrunkSpec(Architecture):
    """Another timm architecture on the default stem: a row of ``registry/trunks.json``, or a name by rule.

    Its sizes are timm's defaults, from ``registry/timm_trunks.json``.
    """

    trunk: str
    trunk_params: int
    """Parameters of everything but the patch embedding."""
    trunk_macs: int
    """Multiply-adds of everything but the patch embedding, for one image."""
    class_params: int = 0
    """Parameters that one more class adds to the classifiers."""
    class_macs: int = 0
    """Multiply-adds that one more class adds."""
    resized_from: int | None = None
    """Patch size of the timm architecture if stride-2 layers cannot make it; its filters are resized."""
    measured: str = ""
    """How close a resized model is to its source on photographs, if measured with real weights."""
    unlike: tuple[str, ...] = ()
    """timm architectures named like another image size of the trunk that differ in more than the size."""


@dataclass(frozen=True)
class WeightsSpec:
    """One set of pretrained weights: a row of ``registry/weights.json``."""

    name: str
    """``architecture.tag``."""
    license: str
    dataset: str
    num_classes: int
    input_size: tuple[int, int, int]
    """Channels, height and width in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    description: str = ""
    file: str | None = None
    """An embedded safetensors file, relative to ``registry/``."""
    hf_hub_id: str | None = None
    """A Hub repository, ``org/name`` or ``org/name@revision``."""
    sha256: str | None = None
    """Content hash of the file, if pinned."""
    transform: str = "none"
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    label_names: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Measured figures, for example ``{"acc@1": 80.0}`` in per cent."""
    metrics_source: str = ""
    """The command that printed the metrics."""
    source_metrics: Mapping[str, float] = field(default_factory=dict)
    """Of a transplant: published figures of its source, in per cent; they hold for the transplant too."""
    source_metrics_from: str = ""
    """Who published them, and where."""
    file_bytes: int | None = None
    """Size of the safetensors file on the Hub; None if embedded or unknown."""
    recipe: str = ""

    def __post_init__(self) -> None:
        """Validate the row."""
        if self.name.count(".") != 1:
            raise ArgumentError(f"a weights entry is named architecture.tag; got {self.name!r}")
        if not self.license:
            raise ArgumentError("license must name a licence (an SPDX identifier in lower case)")
        if (self.file is None) == (self.hf_hub_id is None):
            raise ArgumentError("give exactly one of file (embedded) and hf_hub_id (on the Hub)")
        if self.file and not self.sha256:
            raise ArgumentError("an embedded file needs its sha256")
        choice("transform", self.transform, TRANSFORMS)
        if self.label_names and len(self.label_names) != self.num_classes:
            raise ArgumentError(f"{len(self.label_names)} label_names for num_classes = {self.num_classes}")

    @cached_property
    def architecture(self) -> str:
        """The architecture's timm name."""
        return self.name.split(".", 1)[0]

    @property
    def img_size(self) -> int | tuple[int, int]:
        """In pixels; (height, width) if they differ."""
        _, height, width = self.input_size
        return height if height == width else (height, width)

    @property
    def hub_name(self) -> tuple[str, str | None]:
        """The Hub repository and revision (None is the newest)."""
        repository, _, revision = str(self.hf_hub_id).partition("@")
        return repository, revision or None

    @property
    def tag(self) -> str:
        """The pretrained tag."""
        return self.name.split(".", 1)[1]


@dataclass(frozen=True)
class ElsewhereSpec:
    """Weights that another project publishes in its own layout: a row of ``registry/elsewhere.json``.

    They are not a pretrained tag: a user downloads the file and converts it.
    """

    name: str
    """``architecture.tag``."""
    published_as: str
    """Their name in that project."""
    address: str
    """The project's page."""
    file: str
    """Where the project's own loader puts the file."""
    license: str
    license_source: str
    dataset: str
    metrics: Mapping[str, float]
    """Published figures, in per cent."""
    metrics_source: str
    sha256: str | None = None
    """Content hash of the file; None until somebody has checked the file."""

    @property
    def architecture(self) -> str:
        """The architecture's timm name."""
        return self.name.split(".", 1)[0]

    @property
    def command(self) -> str:
        """The command that turns the downloaded file into a verified folder."""
        options = f"--architecture {self.architecture} --license {self.license}"
        return f"convstem convert {self.file} --out {self.name} {options}"


_NORM_PARAMS = {"batchnorm2d": 2, "frozen_bn": 0, "layernorm2d": 2, "none": 0}
"""Trainable parameters of a stem's norm, per channel."""


def num_params(spec: Architecture) -> int:
    """Return the number of trainable parameters at the architecture's image size, with its head."""
    return stem_params(spec) + (_trunk_params(spec) if isinstance(spec, ModelSpec) else _measured(spec).trunk_params)


def macs(spec: Architecture) -> int:
    """Return the multiply-adds of one image: convolutions, linear layers and attention products."""
    return stem_macs(spec) + (_trunk_macs(spec) if isinstance(spec, ModelSpec) else _measured(spec).trunk_macs)


def stem_params(spec: Architecture) -> int:
    """Return the number of parameters of an architecture's stem."""
    stem = spec.stem
    extra = _NORM_PARAMS[stem.norm] + (1 if stem.bias else 0)
    layers = sum((layer.kernel_size**2 * layer.in_chans + extra) * layer.channels for layer in stem.layers())
    return layers + (stem.last_kernel_size**2 * stem.channels[-1] + 1) * spec.embed_dim


def stem_macs(spec: Architecture) -> int:
    """Return the multiply-adds of an architecture's stem for one image."""
    in_chans, *size = spec.input_size
    layers = spec.stem.layers(size, in_chans)
    last = replace(spec.stem.last_layer(spec.embed_dim, size), in_chans=layers[-1].channels)
    return sum(
        layer.kernel_size**2 * layer.in_chans * layer.channels * layer.height * layer.width for layer in (*layers, last)
    )


def _measured(spec: Architecture) -> TrunkSpec:
    assert isinstance(spec, TrunkSpec)
    return spec


def _trunk_params(spec: ModelSpec) -> int:
    dim, hidden = spec.embed_dim, int(spec.embed_dim * spec.mlp_ratio)
    attention = 4 * dim * dim + 4 * dim
    mlp = 2 * dim * hidden + hidden + dim
    scales = 2 * dim if spec.trunk_args.get("init_values") else 0
    blocks = spec.depth * (attention + mlp + scales + 4 * dim)
    positions = _patches(spec) + (0 if spec.trunk_args.get("no_embed_class") else 1)
    embeddings = dim + (positions * dim if spec.pos_embed == "learn" else 0)
    norm = 2 * dim if spec.trunk_args.get("use_post_transformer_norm", True) else 0
    return embeddings + blocks + norm + (dim + 1) * spec.num_classes


def _trunk_macs(spec: ModelSpec) -> int:
    dim, hidden, tokens = spec.embed_dim, int(spec.embed_dim * spec.mlp_ratio), _patches(spec) + 1
    block = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * tokens * tokens * dim
    return spec.depth * block + dim * spec.num_classes


def _patches(spec: Architecture) -> int:
    _, height, width = spec.input_size
    return (height // spec.patch_size) * (width // spec.patch_size)
