"""Malicious or mistaken configs: each is a change of a saved model's ``config.json``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Config = dict[str, Any]

DELETE = object()
"""Value that removes the field."""


@dataclass(frozen=True)
class Change:
    """A change of one part of a config; an empty ``part`` is the root."""

    part: str
    values: Config

    def __call__(self, config: Config) -> None:
        table = config.setdefault(self.part, {}) if self.part else config
        for name, value in self.values.items():
            if value is DELETE:
                table.pop(name, None)
            else:
                table[name] = value

    @property
    def fields(self) -> list[str]:
        """What an error may blame."""
        return list(self.values)


@dataclass(frozen=True)
class Both:
    """Several changes."""

    changes: tuple[Change, ...]

    def __call__(self, config: Config) -> None:
        for change in self.changes:
            change(config)

    @property
    def fields(self) -> list[str]:
        """What an error may blame."""
        return [field for change in self.changes for field in change.fields]


def arg(**values: Any) -> Change:
    """Change ``model_args``."""
    return Change("model_args", values)


def cfg(**values: Any) -> Change:
    """Change ``pretrained_cfg``."""
    return Change("pretrained_cfg", values)


def root(**values: Any) -> Change:
    """Change the root."""
    return Change("", values)


def both(*changes: Change) -> Both:
    """Make several changes."""
    return Both(changes)


def classes(count: Any) -> Both:
    """Set the number of classes in ``pretrained_cfg`` only."""
    return both(root(num_classes=DELETE), cfg(num_classes=count))


def images(size: Any) -> Both:
    """Set the image size in ``pretrained_cfg`` only; ``model_args`` would take precedence."""
    return both(arg(img_size=DELETE, in_chans=DELETE), cfg(input_size=size, fixed_input_size=True))


# Fault -> the change, for any timm model.
HOSTILE: dict[str, Change | Both] = {
    # sizes that would take all memory, or forever
    "10^6 blocks": arg(depth=10**6),
    "400 blocks": arg(depth=400),
    "width 16384": arg(embed_dim=16384),
    "10^9 classes": both(root(num_classes=10**9), cfg(num_classes=10**9)),
    "10^9 classes in pretrained_cfg only": classes(10**9),
    "10^6 classes in pretrained_cfg only": classes(10**6),
    "images of 10^6 pixels a side": images([3, 10**6, 10**6]),
    "images of 8192 pixels a side": images([3, 8192, 8192]),
    "10^6 channels": images([10**6, 32, 32]),
    "img_size 16384": arg(img_size=16384),
    "img_size [8192, 8192]": arg(img_size=[8192, 8192]),
    "MLP a million times as wide": arg(mlp_ratio=1e6),
    "MLP of infinite width": arg(mlp_ratio=float("inf")),
    "MLP of no number's width": arg(mlp_ratio=float("nan")),
    "10^6 heads": arg(num_heads=10**6),
    "a number of 400 digits": cfg(crop_pct=10**400),
    "depth of 400 digits": arg(depth=10**400),
    # impossible numbers
    "negative depth": arg(depth=-1),
    "no blocks": arg(depth=0),
    "negative width": arg(embed_dim=-192),
    "no heads": arg(num_heads=0),
    "negative classes": classes(-3),
    "patch of no pixels": arg(patch_size=0),
    "heads that do not divide the width": arg(num_heads=7),
    "images of no pixels": images([3, 0, 0]),
    "images of negative size": images([3, -32, -32]),
    "images that are no multiple of the patch": both(arg(img_size=33), cfg(input_size=[3, 33, 33])),
    "dropout of 7": arg(drop_rate=7.0),
    # wrong types
    "depth a string": arg(depth="12"),
    "depth a fraction": arg(depth=1.5),
    "depth true": arg(depth=True),
    "depth a list": arg(depth=[1]),
    "depth an object": arg(depth={"x": 1}),
    "depth null": arg(depth=None),
    "width a string": arg(embed_dim="192"),
    "classes a string": both(root(num_classes="10"), cfg(num_classes="10")),
    "classes a string in pretrained_cfg only": classes("10"),
    "qkv_bias a string": arg(qkv_bias="false"),
    "class_token a string": arg(class_token="no"),
    "img_size a string": arg(img_size="32"),
    "img_size of three numbers": arg(img_size=[3, 32, 32]),
    "in_chans a string": arg(in_chans="3"),
    "pooling that does not exist": arg(global_pool="bogus"),
    "pooling a number": arg(global_pool=3),
    "norm that does not exist": arg(norm_layer="bogus"),
    "norm an object": arg(norm_layer={"eps": 1}),
    "activation that does not exist": arg(act_layer="bogus"),
    "block a string": arg(block_fn="os.system"),
    "embedding layer a string": arg(embed_layer="os.system"),
    "input_size a string": images("3x32x32"),
    "input_size a number": images(32),
    "input_size of two numbers": images([32, 32]),
    "input_size null": images(None),
    "fixed_input_size a string": cfg(fixed_input_size="yes"),
    # arguments that no model has, or that a file may not set
    "an argument that does not exist": arg(evil=1),
    "loading that is not strict": arg(pretrained_strict=False),
    "a device": arg(device="meta"),
    "a dtype": arg(dtype="float16"),
    "a cache folder": arg(cache_dir="/tmp/x"),
    "a checkpoint": arg(checkpoint_path="/tmp/x"),
    "another cfg": arg(pretrained_cfg={"file": "/tmp/x"}),
    "an overlay": arg(pretrained_cfg_overlay={"file": "/tmp/x"}),
    # nesting
    "model_args false": root(model_args=False),
    "model_args null": root(model_args=None),
    "model_args a list": root(model_args=[1]),
    "model_args a string": root(model_args="depth=1"),
    "pretrained_cfg a list": root(pretrained_cfg=[1]),
    "pretrained_cfg a string": root(pretrained_cfg="x"),
    "architecture a list": root(architecture=["x"]),
    "architecture a number": root(architecture=7),
    "architecture missing": root(architecture=DELETE),
    "architecture that does not exist": root(architecture="vit_bogus"),
    # another model than the file's
    "classes that the file does not hold": both(root(num_classes=5), cfg(num_classes=5)),
    "another number of blocks": arg(depth=3),
    "images of twice the size": both(arg(img_size=64), cfg(input_size=[3, 64, 64], fixed_input_size=True)),
    "another number of channels": images([1, 32, 32]),
    "no class token": arg(class_token=False),
    "positions without the class token": arg(no_embed_class=True),
    "registers": arg(reg_tokens=4),
}

# The same for our models only: fields that a transplant does not read, and the stem.
OURS: dict[str, Change | Both] = {
    "pretrained_cfg missing": root(pretrained_cfg=DELETE),
    "another architecture": root(architecture="resnet50"),
    "classes twice": both(root(num_classes=10), cfg(num_classes=10), arg(num_classes=7)),
    "crop_pct 0": cfg(crop_pct=0),
    "crop_pct a string": cfg(crop_pct="0.9"),
    "crop_pct no number": cfg(crop_pct=float("nan")),
    "interpolation that does not exist": cfg(interpolation="bogus"),
    "interpolation a list": cfg(interpolation=["bicubic"]),
    "mean null": cfg(mean=None),
    "mean strings": cfg(mean=["a", "b", "c"]),
    "mean empty": cfg(mean=[]),
    "std 0": cfg(std=[0, 0, 0]),
    "std infinite": cfg(std=[float("inf")] * 3),
    "labels a number": root(label_names=7),
    "an unknown field": cfg(colour="red"),
    "a file": cfg(file="/etc/passwd"),
    "a URL": cfg(url="http://127.0.0.1:9/x.pth"),
    "custom loading": cfg(custom_load="hf"),
    "another file name": cfg(hf_hub_filename="pytorch_model.bin"),
    "a state dict": cfg(state_dict={"head.bias": [0]}),
    "stem of 10,000 layers": arg(stem_channels=[8] * 10**4),
    "stem of strings": arg(stem_channels=["8", "16"]),
    "stem a number": arg(stem_channels=8),
    "stem of negative width": arg(stem_channels=[-8, 16]),
    "stem of other widths": arg(stem_channels=[32, 32]),
    "stem strides that skip pixels": arg(stem_strides=[3, 3]),
    "stem strides of another patch": arg(stem_strides=[2, 1]),
    "stem norm that does not exist": arg(stem_norm="bogus"),
    "stem norm an object": arg(stem_norm={"eps": 1}),
    "stem bias a string": arg(stem_bias="no"),
    "epsilon a string": arg(norm_eps="1e-6"),
}

# Files that are no JSON object.
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"architecture": "vit_',
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "deep": b"[" * 200_000,
    "a number of 5000 digits": b'{"architecture": 1' + b"0" * 5000 + b"}",
}


def change(folder: Path, mutation: Change | Both) -> None:
    """Change a folder's ``config.json``."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    mutation(config)
    path.write_text(json.dumps(config))
