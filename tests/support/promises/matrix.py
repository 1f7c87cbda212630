"""The axes of the matrix, and the cells that are listed with a reason instead of checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SIZE = 64
"""Image side of most models here, in pixels: 4 x 4 patches."""


@dataclass(frozen=True)
class Kind:
    """A kind of name, with an example.

    Args:
        name: the example, for ``timm.create_model``.
        plain: timm's architecture with a patch embedding; its files are transplanted.
        patch: patch size of ``plain`` in pixels; other sizes than 16 are resized.
        small: arguments that keep its models small, besides ``depth=1``.
    """

    name: str
    plain: str
    patch: int = 16
    small: tuple[tuple[str, Any], ...] = ()

    @property
    def ours(self) -> bool:
        """Whether it has a stem; the plain ViT is the control."""
        return self.name != self.plain

    def arguments(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a small model of this name."""
        return {"depth": 1, "img_size": SIZE, **dict(self.small), **changes}

    def plain_arguments(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that give the plain ViT equally many patches."""
        arguments = self.arguments(changes)
        size, patch = arguments["img_size"], self.patch
        smaller = tuple(side // 16 * patch for side in size) if isinstance(size, tuple) else size // 16 * patch
        return {**arguments, "img_size": size if "patch_size" in changes else smaller}


_NARROW = (("embed_dim", 96), ("num_heads", 3))

KINDS = {
    "family": Kind("vit_ti16_convstem", "vit_tiny_patch16_224"),
    "_pyramid": Kind("vit_ti16_convstem_pyramid", "vit_tiny_patch16_224"),
    "row": Kind("vit_s16_dinov3_convstem", "vit_small_patch16_dinov3", small=_NARROW),
    "row of 14": Kind("vit_s16_dinov2_convstem", "vit_small_patch14_dinov2", patch=14, small=_NARROW),
    "fixed positions": Kind("vit_conv_small", "vit_small_patch16_224", small=_NARROW),
    "rule": Kind("deit_tiny_patch16_224_convstem", "deit_tiny_patch16_224"),
    "torchvision": Kind("vit_ti16_convstem", "vit_tiny_patch16_224"),
    "plain": Kind("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
}
"""``torchvision`` is ``vit_ti_16_convstem``. ``plain`` is the control: timm's own ViT meets the same checks."""

DOORS = {
    "tag": "timm's pretrained=True, from the Hub's cache; torchvision's weights=",
    "hf-hub": "timm's name of a repository, from the Hub's cache",
    "local-dir": "timm's name of a folder",
    "load": "convstem.load of a folder; for torchvision, in its layout",
    "transplant": "convstem.transplant, saved and loaded again",
    "overlay": 'timm\'s pretrained_cfg_overlay={"file": ...}',
    "checkpoint_path": "timm's argument",
    "load_state_dict": "torch's method",
    "fresh": "no weights",
}

CONFIG = {"hf-hub", "local-dir", "load", "transplant"}
"""Doors where a config describes the file."""

NAMED = {"tag", "overlay"}
"""Doors where the name and arguments describe the file."""

AFTER = {"checkpoint_path", "load_state_dict"}
"""Doors where weights are loaded into a built model, and torch compares."""

WHOLE = {"as saved", "image size", "classes", "1 channel", "5 channels"}
SHAPE = {"image shape"}
BANDS = {"5 bands to 10", "5 bands to 3"}
FEATURES = {"features", "feature pyramid"}
PATCH = {"patch size of a file"}
DAMAGES = ("missing", "missing in the stem", "misshapen", "surplus", "no stem", "stray proj")
DAMAGE = {f"{damage}{how}" for damage in DAMAGES for how in ("", ", other classes")}
IN_FEATURES = {f"{damage}, as features" for damage in DAMAGES}
CARRIED = {"patchify", "patchify in float64"}
LENIENT = {"patchify, strict=False"}
OTHERWISE = {f"patchify, {how}" for how in ("image size", "classes", "1 channel", "5 channels", "patch size")}
REFUSED = {"patchify, missing", "patchify, missing, other classes", "patchify into a narrow stem"}
PATCHIFY = CARRIED | LENIENT | OTHERWISE | REFUSED
FOREIGN = {"OpenCLIP", "DINOv2", "I-JEPA", "MAE with decoder"}
JAX = {"JAX .npz"}
LOADED = WHOLE | SHAPE | BANDS | FEATURES | PATCH | DAMAGE | IN_FEATURES | PATCHIFY | FOREIGN | JAX
MISTAKES = {"misspelt argument", "image size 100", "out_indices 99"}
PATCH_14 = {"patch size 14"}
PROJ = {"proj read", "proj assigned"}
BUILT = {"patch size 8", "timm's filter", "TIMM_USE_NAFLEXVIT"}
SITUATIONS = LOADED | MISTAKES | PATCH_14 | PROJ | BUILT


@dataclass(frozen=True)
class Listed:
    """Cells that are impossible or represented by others. An axis left out means all its values."""

    reason: str
    kinds: set[str] = field(default_factory=lambda: set(KINDS))
    doors: set[str] = field(default_factory=lambda: set(DOORS))
    situations: set[str] = field(default_factory=lambda: SITUATIONS)


LISTED = (
    Listed("nothing is loaded", doors={"fresh"}, situations=LOADED),
    Listed("it is about a model, however that was filled: see fresh", doors={*DOORS} - {"fresh"}, situations=BUILT),
    Listed("as fresh, and of a transplanted model", doors={*DOORS} - {"fresh", "transplant"}, situations=PROJ),
    Listed("the model is built before: see fresh", doors={"load_state_dict"}, situations=MISTAKES | PATCH_14),
    Listed("a saved stem has its patch size: see patch size of a file", doors=CONFIG, situations=PATCH_14),
    Listed("no other door takes strict", doors={*DOORS} - {"load_state_dict"}, situations=LENIENT),
    Listed("timm's filter reads them by overlay; convstem convert reads them anywhere", doors={*DOORS} - {"overlay"},
           situations=FOREIGN),
    Listed("timm reads .npz at two doors", doors={*DOORS} - {"overlay", "checkpoint_path"}, situations=JAX),
    Listed("what a tag's file is, its cfg says: RGB and square", doors={"tag"}, situations=BANDS | SHAPE),
    Listed("no grid is in a state dict, and torch compares shapes: as the plain ViT", doors=AFTER, situations=SHAPE),
    Listed("a feature extractor's own keys begin with model.", doors=AFTER, situations=FEATURES | IN_FEATURES),
    Listed("as at overlay and local-dir", doors={"tag", "hf-hub", "load", "transplant"}, situations=IN_FEATURES),
    Listed("its file has a stem, as any saved one", doors={"transplant"}, situations=PATCHIFY - CARRIED),
    Listed("convstem.load and transplant are for models with a stem", {"plain"}, {"load", "transplant"}),
    Listed("timm's words, and its leniency where the classes differ", {"plain"},
           situations=DAMAGE | IN_FEATURES | PATCH | MISTAKES | PATCH_14 | PROJ),
    Listed("the plain ViT is the control in them", {"plain"},
           situations=PATCHIFY | FOREIGN | JAX | {"feature pyramid", "timm's filter"}),
    Listed("it has no tags, and a transplant keeps the positions of the plain ViT", {"fixed positions"},
           {"tag", "transplant"}),
    Listed("its stem carries pixels in range only: see tests/transplanting", {"fixed positions"},
           situations=PATCHIFY - {"patchify into a narrow stem"} | FOREIGN | JAX | {"timm's filter"}),
    Listed("its stem is stated: another patch size needs another one", {"fixed positions"},
           situations=PATCH | PATCH_14 | {"patch size 8"}),
    Listed("a saved model's config has the name without _pyramid", {"_pyramid"}, CONFIG - {"local-dir"}),
    Listed("a saved model's config has the name without _pyramid", {"_pyramid"}, {"local-dir"},
           SITUATIONS - {"as saved"}),
    Listed("without features_only it is the family's model, as other cells show", {"_pyramid"}, situations=DAMAGE),
    Listed("features_only means the pyramid there", {"_pyramid"}, situations={"features"}),
    Listed("its positions are rotary: any size will do", {"row"}, situations={"image size 100"}),
    Listed("timm's filter of its class does not read them", {"row"}, situations=FOREIGN | JAX),
    Listed("timm does not read them into this trunk", {"row of 14"}, situations={"MAE with decoder"} | JAX),
    Listed("its filters are resized, in the file's type", {"row of 14"}, situations={"patchify in float64"}),
    Listed("timm's doors", {"torchvision"}, {"hf-hub", "local-dir", "overlay", "checkpoint_path"}),
    Listed("torchvision's ViT has no features_only, patch_embed, other channels or image shapes", {"torchvision"},
           situations=FEATURES | IN_FEATURES | SHAPE | BANDS | PROJ | {"1 channel", "5 channels", "out_indices 99"}
           | {"patchify, 1 channel", "patchify, 5 channels"}),
    Listed("timm's own", {"torchvision"}, situations={"timm's filter", "TIMM_USE_NAFLEXVIT"}),
    Listed("torchvision's builder keeps its patch size: conv_stem_configs= makes another", {"torchvision"},
           situations=PATCH | {"patch size 8", "patchify, patch size"}),
    Listed("its files are timm's, of plain ViTs: see patchify", {"torchvision"}, {"tag"}, DAMAGE | {"as saved"}),
    Listed("weights= takes a whole model as its file is", {"torchvision"}, {"tag"},
           OTHERWISE | {"patchify, missing, other classes", "patchify in float64", "image size 100"} | PATCH_14),
    Listed("as the saved model itself: torch compares", {"torchvision"}, {"transplant"},
           SITUATIONS - {"as saved", "patchify"}),
    Listed("the model is built before, and torch compares what is carried", {"torchvision"},
           {"load_state_dict"}, PATCHIFY - {"patchify", "patchify, strict=False"}),
    Listed("conv_stem_configs= with weights=: see torchvision's own tests", {"torchvision"},
           situations={"patchify into a narrow stem"}),
)  # fmt: skip


def listed(kind: str, door: str, situation: str) -> str | None:
    """Return why a cell is not checked; None if it is."""
    for row in LISTED:
        if kind in row.kinds and door in row.doors and situation in row.situations:
            return row.reason
    return None
