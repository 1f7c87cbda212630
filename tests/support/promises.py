"""The matrix of promises: kinds of names, doors by which weights come in, and what is listed instead of checked."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file

import convstem
from tests.support.assertions import randomise

SIZE = 64
"""Side of the images of most models here, in pixels: 4 x 4 patches."""

State = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of name, by one of them.

    Args:
        name: as ``timm.create_model`` takes it.
        plain: timm's architecture on a patch embedding, whose files it transplants.
        patch: of ``plain``, in pixels; another than 16 is resized.
    """

    name: str
    plain: str
    patch: int = 16

    @property
    def ours(self) -> bool:
        """Tell whether it has a stem; the plain ViT is the control."""
        return self.name != self.plain

    def plain_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments with which the plain ViT has as many patches."""
        sized = {"img_size": SIZE, **arguments}
        return {"depth": 1, **sized, "img_size": _scaled(sized["img_size"], self.patch)}


def _scaled(size: Any, patch: int) -> Any:
    return tuple(side // 16 * patch for side in size) if isinstance(size, tuple) else size // 16 * patch


KINDS = {
    "family": Kind("vit_ti16_convstem", "vit_tiny_patch16_224"),
    "pyramid": Kind("vit_ti16_convstem_pyramid", "vit_tiny_patch16_224"),
    "row": Kind("vit_s16_dinov3_convstem", "vit_small_patch16_dinov3"),
    "row of 14": Kind("vit_s16_dinov2_convstem", "vit_small_patch14_dinov2", patch=14),
    "rule": Kind("deit_tiny_patch16_224_convstem", "deit_tiny_patch16_224"),
    "plain": Kind("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
}
"""``plain`` is no kind of ours: it shows that what is expected of ours is what timm does."""

TORCHVISION = "torchvision"


@dataclass
class File:
    """Weights as their owner has them, and what is said about them.

    Args:
        model: what was saved, in eval mode; never changed.
        name: the timm name by which it is asked for.
        arguments: with which ``name`` builds such a model.
        state: the tensors of the file.
        folder: where it is written, when that is needed.
    """

    model: Any
    name: str
    arguments: dict[str, Any]
    state: State
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    """What an overlay has to say about the file beside where it is."""
    given: Path | None = None
    """A file that is there already."""

    def but(self, folder: Path, state: State) -> File:
        """Return the same with other tensors."""
        return replace(self, folder=folder, state=state)

    @cached_property
    def weights(self) -> Path:
        """The file of the tensors alone."""
        if self.given:
            return self.given
        self.folder.mkdir(parents=True)
        save_file({key: tensor.clone().contiguous() for key, tensor in self.state.items()}, self.folder / _WEIGHTS)
        return self.folder / _WEIGHTS

    @cached_property
    def with_config(self) -> Path:
        """The folder, with timm's config."""
        weights = self.weights.read_bytes()
        timm.models.save_for_hf(self.model, self.folder, safe_serialization=True)
        self.weights.unlink()
        self.weights.write_bytes(weights)
        config = self.folder / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "architecture": self.name}))
        return self.folder

    def repository(self, repo_id: str) -> Path:
        """Return a Hub cache in which this is the only commit of a repository."""
        cache = self.folder.with_name(f"{self.folder.name}-hub")
        commit = cache / f"models--{repo_id.replace('/', '--')}" / "snapshots" / COMMIT
        if not commit.exists():
            shutil.copytree(self.with_config, commit)
            (commit.parents[1] / "refs").mkdir()
            (commit.parents[1] / "refs" / "main").write_text(COMMIT)
        return cache


_WEIGHTS = "model.safetensors"
COMMIT = "1" * 40


# ---- doors -----------------------------------------------------------------------------------------------------------


def by_tag(file: File, **changes: Any) -> Any:
    cfg = timm.get_pretrained_cfg(file.name)
    arguments = {"cache_dir": file.repository(cfg.hf_hub_id), **file.arguments, **changes}
    return timm.create_model(f"{file.name}.{cfg.tag}", pretrained=True, **arguments)


def by_hub(file: File, **changes: Any) -> Any:
    cache = file.repository("me/mine")
    return timm.create_model(f"hf-hub:me/mine@{COMMIT}", pretrained=True, cache_dir=cache, **changes)


def by_folder(file: File, **changes: Any) -> Any:
    return timm.create_model(f"local-dir:{file.with_config}", pretrained=True, **changes)


def by_load(file: File, **changes: Any) -> Any:
    return convstem.load(file.with_config, **changes)


def by_checkpoint_path(file: File, **changes: Any) -> Any:
    return timm.create_model(file.name, checkpoint_path=str(file.weights), **{**file.arguments, **changes})


def by_overlay(file: File, **changes: Any) -> Any:
    overlay = {"file": str(file.weights), **file.facts}
    return timm.create_model(
        file.name, pretrained=True, pretrained_cfg_overlay=overlay, **{**file.arguments, **changes}
    )


def by_state_dict(file: File, **changes: Any) -> Any:
    model = fresh(file, **changes)
    model.load_state_dict(file.state)
    return model


def fresh(file: File, **changes: Any) -> Any:
    return timm.create_model(file.name, **{**file.arguments, **changes})


DOORS: dict[str, Callable[..., Any]] = {
    "tag": by_tag,
    "hf-hub": by_hub,
    "local-dir": by_folder,
    "load": by_load,
    "transplant": by_folder,
    "overlay": by_overlay,
    "checkpoint_path": by_checkpoint_path,
    "load_state_dict": by_state_dict,
    "fresh": fresh,
}
"""``transplant`` is a transplanted model, saved and loaded again; ``fresh`` a model without weights."""

AFTER = {"checkpoint_path", "load_state_dict"}
"""Where the weights come when the model is built, and torch compares."""

CONFIG = {"hf-hub", "local-dir", "load", "transplant"}
"""Where a config says what the file is."""

NAMED = {"tag", "overlay"}


# ---- cells -----------------------------------------------------------------------------------------------------------


class Shelf:
    """Models and files that cells share; each is made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[Any, Any] = {}
        self._count = count()

    def folder(self) -> Path:
        """Return a new path."""
        return self.root / str(next(self._count))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returned for the first caller with this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def plain(self, kind: Kind, **arguments: Any) -> Any:
        """Return the kind's plain ViT with weights of its own, to be left as it is."""
        arguments = kind.plain_arguments(arguments)
        make = lambda: randomise(timm.create_model(kind.plain, **arguments)).eval()  # noqa: E731
        return self.once((kind.plain, *sorted(arguments.items())), make)

    def file(self, kind: Kind, door: str, **arguments: Any) -> File:
        """Return the weights of a whole model of a kind; at the door ``transplant`` they are transplanted."""
        arguments = {"depth": 1, "img_size": SIZE, **arguments}
        key = ("file", kind, door == "transplant", *sorted(arguments.items()))
        return self.once(key, lambda: self._file(kind, door, arguments))

    def _file(self, kind: Kind, door: str, arguments: dict[str, Any]) -> File:
        if door == "transplant":
            model = convstem.transplant(copy.deepcopy(self.plain(kind, **arguments)))
        else:
            model = randomise(timm.create_model(kind.name, **arguments))
        size = arguments["img_size"]
        facts = {"num_classes": model.num_classes}
        facts["input_size"] = (model.in_chans, *(size if isinstance(size, tuple) else (size, size)))
        return File(model.eval(), kind.name, arguments, model.state_dict(), self.folder(), facts)

    def patchify(self, kind: Kind, door: str, **arguments: Any) -> File:
        """Return the weights of a plain ViT, under the name (and config) of a model of the kind."""
        plain = self.plain(kind, **arguments)
        if door == "transplant":
            return self.file(kind, door, **arguments)
        if not kind.ours:
            return self.file(kind, door, **arguments)
        key = ("patchify", kind, *sorted(arguments.items()))
        return self.once(key, lambda: self.file(kind, door, **arguments).but(self.folder(), plain.state_dict()))

    def reading(self, kind: Kind, **changes: Any) -> Any:
        """Return the kind's plain ViT asked for otherwise, with the weights of ``plain`` as timm reads them."""
        source = self.plain(kind)
        facts = {"input_size": (3, *source.patch_embed.img_size), "num_classes": source.num_classes}
        overlay = {"state_dict": source.state_dict(), **facts}
        arguments = {"img_size": SIZE} if "patch_size" in changes else kind.plain_arguments(changes)
        arguments = {"depth": 1, **arguments, **{name: changes[name] for name in changes if name != "img_size"}}
        return timm.create_model(kind.plain, pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()


# ---- what is listed instead of checked -------------------------------------------------------------------------------

WHOLE = {"as saved", "image size", "image shape", "classes", "1 channel", "13 channels", "features", "feature pyramid"}
BANDS = {"13 bands to 26", "13 bands to 3"}
PATCH = {"patch size of a file"}
DAMAGES = ("missing", "missing in the stem", "misshapen", "surplus", "no stem", "stray proj")
DAMAGE = {f"{damage}{how}" for damage in DAMAGES for how in ("", ", other classes", ", as features")}
PATCHIFY = {
    f"patchify{how}"
    for how in ("", " in float64", ", image size", ", classes", ", 1 channel", ", 13 channels", ", patch size",
                ", missing", ", missing, other classes")
}  # fmt: skip
LENIENT = {"patchify, strict=False"}
FOREIGN = {"OpenCLIP", "DINOv2", "I-JEPA", "MAE with decoder"}
JAX = {"JAX .npz"}
MISTAKES = {"misspelt argument", "image size 100", "out_indices 99"}
PATCH_14 = {"patch size 14"}
FRESH = {"patch size 8", "proj read", "proj assigned", "timm's filter", "TIMM_USE_NAFLEXVIT"}

ANY: set[str] = set()
LISTED: tuple[tuple[set[str], set[str], set[str], str], ...] = (
    (ANY, {"fresh"}, WHOLE | BANDS | PATCH | DAMAGE | PATCHIFY | LENIENT | FOREIGN | JAX, "nothing is loaded"),
    (ANY, set(DOORS) - {"fresh", "transplant"}, {"proj read", "proj assigned"}, "the model is one of those of fresh"),
    (ANY, set(DOORS) - {"fresh"}, FRESH - {"proj read", "proj assigned"}, "it is about a model, however it was filled"),
    (ANY, {"load_state_dict"}, MISTAKES | PATCH_14, "the model is built before, as at the door fresh"),
    (ANY, CONFIG | {"checkpoint_path"}, PATCH_14, "a saved stem has its patch size: see patch size of a file"),
    (ANY, set(DOORS) - {"load_state_dict"}, LENIENT, "no other door takes strict"),
    (ANY, set(DOORS) - {"overlay"}, FOREIGN, "timm's filter runs for a file by overlay; convert takes the others"),
    (ANY, set(DOORS) - {"overlay", "checkpoint_path"}, JAX, "timm reads .npz at two doors"),
    (ANY, {"tag"}, BANDS | {"image shape"}, "what a tag's file is, its cfg says: RGB and square"),
    (ANY, AFTER, {"image shape"}, "a state dict does not say its grid, and torch compares shapes: as the plain ViT"),
    (ANY, AFTER, {"features", "feature pyramid"}, "a feature extractor's own keys begin with model."),
    (ANY, AFTER, {name for name in DAMAGE if "features" in name}, "a feature extractor's own keys begin with model."),
    (ANY, {"transplant"}, PATCHIFY - {"patchify", "patchify in float64"}, "its file has a stem: as for any saved file"),
    ({"plain"}, {"load", "transplant"}, ANY, "convstem.load and a transplant are for models with a stem"),
    ({"plain"}, ANY, DAMAGE | PATCH | MISTAKES | PATCH_14 | FRESH - {"patch size 8", "TIMM_USE_NAFLEXVIT"},
     "timm's words, and its leniency where the classes differ"),
    ({"plain"}, ANY, PATCHIFY | LENIENT | FOREIGN | JAX | {"feature pyramid"}, "the plain ViT is the control in them"),
    ({"row"}, ANY, {"image size 100"}, "its positions are rotary: any size will do"),
    ({"row"}, ANY, {"I-JEPA", "MAE with decoder"} | JAX, "timm's filter of its class does not read them"),
    ({"row of 14"}, ANY, {"MAE with decoder"} | JAX, "timm does not read them into this trunk"),
    ({"row of 14"}, ANY, {"patchify in float64"}, "its filters are resized, in the file's type"),
)  # fmt: skip
"""Kinds, doors and situations (none: all of them) of cells that cannot be, and why."""


def listed(kind: str, door: str, situation: str) -> str | None:
    """Return why a cell is not checked; None if it is."""
    for kinds, doors, situations, reason in LISTED:
        if kind in (kinds or KINDS) and door in (doors or DOORS) and situation in (situations or {situation}):
            return reason
    return None
