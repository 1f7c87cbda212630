"""Reads other libraries' configs beside a checkpoint, and compares outputs with their own models."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from convstem.errors import CheckpointError, InvalidFileError, MissingPathError
from convstem.hub.config import parts, read_json
from convstem.hub.limits import check_kinds, fits, short
from convstem.hub.source import CONFIG, PREPROCESSING, WEIGHTS
from convstem.layouts.conversion import Converted
from convstem.layouts.transformers import arguments_of_config, layout_of_config
from convstem.layouts.unwrap import unwrap
from convstem.publishing.derived import image_size, probe_batch
from convstem.registry import catalog
from convstem.registry.records import ModelSpec
from convstem.registry.stem_spec import StemSpec
from convstem.transplanting.grid import enlarge_patches

TOLERANCE = 1e-4
"""Largest relative difference of float32 outputs that counts as equal."""


Outputs: TypeAlias = Callable[[Any, Tensor], Tensor]
"""Takes a timm model and images; returns logits, tokens or a map."""


Reference: TypeAlias = tuple[Tensor, Outputs]
"""The reference's output, and a function that gets the same from a timm model."""


_NAMES = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
          "open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # fmt: skip
"""Names of weights files in folders of transformers, timm or open_clip, safetensors first."""


def weights_in(source: Path) -> Path:
    """Return a folder's weights file, or the file itself.

    Raises:
        MissingPathError: the folder has no weights file.
    """
    if not source.is_dir():
        return source
    found = [source / name for name in _NAMES if (source / name).is_file()]
    if not found:
        raise MissingPathError(f"{source} has none of {', '.join(_NAMES)}: give the path of a checkpoint")
    return found[0]


@dataclass(frozen=True)
class Beside:
    """Facts from the configs beside a weights file."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``convstem.convert``."""
    layout: str | None = None
    cfg: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of timm's pretrained cfg."""
    labels: tuple[str, ...] = ()
    """Class names, in order."""


def read_beside(path: Path) -> Beside:
    """Return the facts in transformers' or timm's configs beside a weights file.

    Raises:
        InvalidFileError: a config is damaged.
    """
    config, preprocessing = path.with_name(CONFIG), path.with_name(PREPROCESSING)
    content = read_json(config) if config.is_file() else {}
    layout = layout_of_config(content)
    images = _mean_and_std(preprocessing) if preprocessing.is_file() else {}
    if layout is None and isinstance(content.get("pretrained_cfg"), Mapping):
        timms = _of_timm(content)
        return replace(timms, facts={**timms.facts, **images})
    facts = arguments_of_config(content) if layout else {}
    return Beside({**facts, **images}, layout, labels=_labels(content.get("id2label")) if layout else ())


_OF_CFG = {"crop_mode": str, "crop_pct": float, "interpolation": str}
_OF_IMAGES = {"mean": list[float], "std": list[float]}
_OF_MODEL = {
    "act_layer": str,
    "norm_eps": float,
    "num_heads": int,
    "stem_last_stride": int,
    "stem_strides": list[int],
    "stride": int,
}
"""Fields taken from a timm config, with their types. The first two are in its pretrained cfg (``_OF_IMAGES`` as facts),
the last in its ``model_args``."""


def _of_timm(config: Mapping[str, Any]) -> Beside:
    cfg, args = parts(config)
    spec = catalog.architectures().get(config["architecture"])
    own = {"num_heads": spec.num_heads, **spec.stem.model_args} if spec else {}
    if isinstance(spec, ModelSpec):
        own["norm_eps"] = spec.trunk_args.get("norm_eps")
    facts = {**_taken({**own, **args}, _OF_MODEL), **_taken(cfg, _OF_IMAGES)}
    size: Any = args.get("img_size")
    if fits(size, list[int]) and len(size) == 2 and size[0] != size[1]:
        facts["img_size"] = tuple(size)
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    return Beside(facts, cfg=_taken(cfg, _OF_CFG), labels=_labels(cfg.get("label_names")))


def _taken(stated: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``kinds`` that a config states, after checking their types."""
    found = {name: stated[name] for name in kinds if stated.get(name) is not None}
    check_kinds(found, kinds)
    return found


def _labels(names: Any) -> tuple[str, ...]:
    """Return class names from a list or a table by number; empty if they are only numbered (LABEL_0)."""
    if isinstance(names, Mapping):
        numbered = {int(key): value for key, value in names.items() if str(key).isdecimal()}
        names = [numbered[index] for index in sorted(numbered)] if sorted(numbered) == [*range(len(names))] else []
    told = isinstance(names, list) and fits(names, list[str]) and not all(map(_NUMBERED.fullmatch, names))
    return tuple(names) if told else ()


_NUMBERED = re.compile(r"LABEL_\d+")
"""transformers' name for an unnamed class."""


def _mean_and_std(preprocessing: Path) -> dict[str, tuple[float, ...]]:
    content = read_json(preprocessing)
    found = {name: content[f"image_{name}"] for name in ("mean", "std") if content.get(f"image_{name}")}
    for name, values in found.items():
        if not fits(values, list[float]):
            raise InvalidFileError(f"{preprocessing.name}: image_{name} must be a list of numbers; got {short(values)}")
    return {name: tuple(values) for name, values in found.items()}


def transformers_config(path: Path) -> dict[str, Any]:
    """Return transformers' ``config.json`` beside a weights file; empty if there is none or it is another library's."""
    config = path.with_name(CONFIG)
    content = read_json(config) if config.is_file() else {}
    return content if content.get("architectures") else {}


@torch.no_grad()
def compare(
    content: Mapping[str, Any],
    path: Path,
    converted: Converted,
    model: nn.Module,
    use_ema: bool | None = None,
    twin: nn.Module | None = None,
    resized_from: int | None = None,
) -> str:
    """Compare outputs with the reference's and return a sentence about the difference.

    Args:
        content: the checkpoint.
        path: its path; a transformers config beside it names its class.
        converted: the converted state dict.
        model: the converted model.
        use_ema: whether the averaged weights were taken.
        twin: its transplant, if that will be written; default: ``model``.
        resized_from: patch size of the source, if ``twin``'s filters were resized. Then ``twin`` gets images whose
            patches are resized one by one.

    Raises:
        CheckpointError: outputs differ by more than ``TOLERANCE``, or the library cannot run its model.
    """
    library = "transformers" if converted.source.startswith("transformers") else converted.source
    reference = _REFERENCES.get(library)
    if library == "timm":
        return "nothing to compare: the keys are timm's own, and so is the model"
    if reference is None:
        return f"not compared: no installable library has models of the layout {converted.source}"
    if library == "transformers" and not transformers_config(path):
        return "not compared: there is no config.json of transformers beside the weights"
    images = probe_batch(model, image_size(model))[::3]  # from noise to smooth
    state = unwrap(content, use_ema).state_dict
    try:
        found = reference(state, path, converted, model, images)
    except Exception as error:  # another library may raise anything for a foreign config or weights
        raise CheckpointError(
            f"{library} cannot run its own model of this checkpoint, so nothing was compared or written "
            f"({type(error).__name__}: {error}); leave out the check to convert it anyway"
        ) from error
    if isinstance(found, str):
        return f"not compared: {found}"
    expected, outputs = found
    written = copy.deepcopy(twin or model).float()
    actual = outputs(written, enlarge_patches(images, resized_from) if resized_from else images)
    if actual.shape != expected.shape:
        raise CheckpointError(
            f"the converted model gives {list(actual.shape)} where {library}'s gives {list(expected.shape)}; nothing "
            "was written"
        )
    difference = float((actual - expected).norm() / (expected.norm() or 1))  # torchvision's untrained head outputs 0
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"the converted model differs from {library}'s by {difference:.1e} (relative, random images), more than "
            f"{TOLERANCE:.0e}; nothing was written"
        )
    after = ", after the transplant" if twin else ""
    resized = f", each patch of {resized_from} pixels resized by itself" if resized_from else ""
    return f"equal to {library}'s outputs within {difference:.1e}{after} (relative, random images{resized}, float32)"


def _logits(model: Any, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits


def _tokens(model: Any, images: Tensor) -> Tensor:
    tokens: Tensor = model.forward_features(images)
    return tokens


def _map(model: Any, images: Tensor) -> Tensor:
    return _tokens(model, images)[:, model.num_prefix_tokens :]


def _torchvision(
    state: Mapping[str, Tensor], path: Path, converted: Converted, model: Any, images: Tensor
) -> Reference | str:
    from torchvision.models.vision_transformer import VisionTransformer

    from convstem.stem.vocabulary import to_torchvision

    stem: StemSpec | None = getattr(model.patch_embed, "stem_spec", None)
    sizes = converted.sizes
    twin = VisionTransformer(
        image_size=images.shape[-1],
        patch_size=stem.patch_size if stem else sizes.patch_size,
        num_layers=sizes.depth,
        num_heads=model.blocks[0].attn.num_heads,
        hidden_dim=sizes.embed_dim,
        mlp_dim=sizes.mlp,
        num_classes=sizes.num_classes,
        conv_stem_configs=to_torchvision(stem) if stem else None,
    )
    twin.load_state_dict(dict(state))
    return twin.float().eval()(images), _logits


def _transformers(
    state: Mapping[str, Tensor], path: Path, converted: Converted, model: Any, images: Tensor
) -> Reference | str:
    import transformers

    name = str(transformers_config(path)["architectures"][0])
    cls: Any = getattr(transformers, name, None)
    if not issubclass(cls if isinstance(cls, type) else object, transformers.PreTrainedModel):
        return f"transformers has no model {name}"
    if "MAE" in name:
        return f"{name} hides patches at random"
    twin: Any = cls.from_pretrained(path.parent).float().eval()
    more = hasattr(twin, "text_model") or name.endswith("ForMaskedImageModeling")
    outputs = (getattr(twin, "vision_model", twin.base_model) if more else twin)(images)
    for kind in ("logits", "image_embeds"):
        if getattr(outputs, kind, None) is not None:
            return getattr(outputs, kind), _logits
    pooled, tokens = (getattr(outputs, field, None) for field in ("pooler_output", "last_hidden_state"))
    if pooled is not None and converted.source != "transformers_vit":  # conversion left out ViT's pooler
        project = getattr(twin, "visual_projection", None)
        return (project(pooled) if project else pooled), _logits
    if tokens is not None:
        return tokens, _tokens
    maps = getattr(outputs, "feature_maps", None)
    if maps and getattr(twin.config, "apply_layernorm", False) and getattr(twin.config, "reshape_hidden_states", False):
        return maps[-1].flatten(2).mT, _map
    return f"{name} gives none of the outputs that timm's model has"


_REFERENCES: Mapping[str, Callable[..., Reference | str]] = {"torchvision": _torchvision, "transformers": _transformers}
