"""Files as users have them, and the doors through which they are loaded."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file

import convstem
from tests.support.assertions import randomise
from tests.support.promises.matrix import Kind

State = dict[str, Any]
COMMIT = "1" * 40
WEIGHTS = "model.safetensors"


@dataclass
class File:
    """A user's weights, and facts about them.

    Args:
        model: the saved model, in eval mode; never changed.
        name: timm name to load it by.
        arguments: arguments with which ``name`` builds such a model.
        state: the file's tensors.
        folder: where it is written, if needed.
        facts: an overlay's facts about the file, besides its location.
        given: an existing file.
    """

    model: Any
    name: str
    arguments: dict[str, Any]
    state: State
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    given: Path | None = None

    def but(self, folder: Path, state: State) -> File:
        """Return the same with other tensors."""
        return replace(self, folder=folder, state=state)

    @cached_property
    def weights(self) -> Path:
        """The file with only the tensors."""
        if self.given:
            return self.given
        self.folder.mkdir()
        save_file({key: tensor.clone().contiguous() for key, tensor in self.state.items()}, self.folder / WEIGHTS)
        return self.folder / WEIGHTS

    @cached_property
    def with_config(self) -> Path:
        """The folder with timm's config of the model."""
        kept = self.weights.rename(self.folder / "kept")
        timm.models.save_for_hf(self.model, self.folder, safe_serialization=True)
        kept.replace(self.folder / WEIGHTS)
        return self.folder

    def in_cache(self, repo_id: str, cache: Path | None = None) -> Path:
        """Return a Hub cache with this as a repository's newest commit."""
        cache = cache or self.folder.with_name(f"{self.folder.name}-hub")
        repository = cache / f"models--{repo_id.replace('/', '--')}"
        shutil.rmtree(repository, ignore_errors=True)
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        shutil.copytree(self.with_config, repository / "snapshots" / COMMIT, copy_function=os.link)
        return cache


class Shelf:
    """Models and files shared by cells; each is made on first use."""

    def __init__(self, root: Path) -> None:
        self.kind = ""
        self._root = root
        self._made: dict[Any, Any] = {}
        self._passing: list[Path] = []
        self._count = count()

    def folder(self) -> Path:
        """Return a new path."""
        return self._root / str(next(self._count))

    def passing(self) -> Path:
        """Return a new path for a single cell."""
        self._passing.append(self.folder())
        return self._passing[-1]

    def tidy(self) -> None:
        """Remove the files of a single cell."""
        names = {path.name for path in self._passing}
        for path in self._root.iterdir():
            if re.split("[-.]", path.name)[0] in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._passing.clear()

    def clear(self) -> None:
        """Remove everything."""
        self._made.clear()
        for path in self._root.iterdir():
            shutil.rmtree(path)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the result of ``make`` for this key, calling it only once."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def plain(self, kind: Kind, **changes: Any) -> Any:
        """Return the kind's plain ViT with random weights. Do not change it."""
        arguments = kind.plain_arguments(changes)
        key = ("plain", kind.plain, *sorted(arguments.items()))
        return self.once(key, lambda: randomise(timm.create_model(kind.plain, **arguments)).eval())

    def reading(self, kind: Kind, **changes: Any) -> Any:
        """Return the kind's plain ViT with changed arguments, into which timm has loaded ``plain``'s weights."""
        source = self.plain(kind)
        facts = {"input_size": (3, *source.patch_embed.img_size), "num_classes": source.num_classes}
        overlay = {"state_dict": source.state_dict(), **facts}
        arguments = kind.plain_arguments(changes)
        return timm.create_model(kind.plain, pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()

    def fresh(self, file: File, **changes: Any) -> Any:
        """Return a model without weights. Do not change it."""
        key = ("fresh", file.name, *sorted({**file.arguments, **changes}.items()))
        return self.once(key, lambda: fresh(file, **changes).eval())

    def file(self, kind: Kind, door: str, **changes: Any) -> File:
        """Return the weights of a kind's whole model; at the door ``transplant`` they are transplanted."""
        key = ("file", kind.name, door == "transplant", *sorted(changes.items()))
        return self.once(key, lambda: self._file(kind, door, changes))

    def _file(self, kind: Kind, door: str, changes: dict[str, Any]) -> File:
        arguments = kind.arguments(changes)
        if door == "transplant":
            model = convstem.transplant(copy.deepcopy(self.plain(kind, **changes)))
        else:
            model = timm.create_model(kind.name, **arguments)
            fixed = {name: buffer.clone() for name, buffer in model.named_buffers()}
            randomise(model)
            if "pos_embed" in fixed:
                model.pos_embed.copy_(fixed["pos_embed"])
        size = arguments["img_size"]
        shape = (model.in_chans, *(size if isinstance(size, tuple) else (size, size)))
        facts = {"num_classes": model.num_classes, "input_size": shape}
        return File(model.eval(), kind.name, arguments, model.state_dict(), self.folder(), facts)

    def patchify(self, kind: Kind, door: str, **changes: Any) -> File:
        """Return a plain ViT's weights, with the name (and config) of a model of the kind."""
        if door == "transplant":
            return self.file(kind, door, **changes)
        plain = self.plain(kind, **changes)
        key = ("patchify", kind.name, *sorted(changes.items()))
        return self.once(key, lambda: self.file(kind, door, **changes).but(self.folder(), plain.state_dict()))


# ---- doors -----------------------------------------------------------------------------------------------------------


def by_tag(file: File, **changes: Any) -> Any:
    cfg = timm.get_pretrained_cfg(file.name)
    arguments = {**file.arguments, **changes, "cache_dir": file.in_cache(cfg.hf_hub_id)}
    return timm.create_model(f"{file.name}.{cfg.tag}", pretrained=True, **arguments)


def by_hub(file: File, **changes: Any) -> Any:
    return timm.create_model(f"hf-hub:me/mine@{COMMIT}", pretrained=True, cache_dir=file.in_cache("me/mine"), **changes)


def by_folder(file: File, **changes: Any) -> Any:
    return timm.create_model(f"local-dir:{file.with_config}", pretrained=True, **changes)


def by_load(file: File, **changes: Any) -> Any:
    return convstem.load(file.with_config, **changes)


def by_overlay(file: File, **changes: Any) -> Any:
    overlay = {"file": str(file.weights), **file.facts}
    arguments = {**file.arguments, **changes}
    return timm.create_model(file.name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)


def by_checkpoint_path(file: File, **changes: Any) -> Any:
    return timm.create_model(file.name, checkpoint_path=str(file.weights), **{**file.arguments, **changes})


def by_state_dict(file: File, **changes: Any) -> Any:
    model = fresh(file, **changes)
    model.load_state_dict(file.state)
    return model


def fresh(file: File, **changes: Any) -> Any:
    return timm.create_model(file.name, **{**file.arguments, **changes})


OPEN: dict[str, Callable[..., Any]] = {
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
"""Door -> a function of a file and changed arguments."""
