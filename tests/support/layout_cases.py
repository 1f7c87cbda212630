"""One small model of every layout with random weights, and its users' forms of checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torchvision.models.vision_transformer import ConvStemConfig

from tests.support import reference_ecvit as ecvits
from tests.support import reference_vits as vits
from tests.support.assertions import randomise

State = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A layout in one form that users have."""

    name: str
    layout: str
    model: Callable[[], nn.Module]
    hold: Callable[[State], State]
    """Wraps the model's state dict as the file does."""
    facts: State = field(default_factory=dict)
    """Facts that shapes do not show."""
    output: Callable[[Any], Tensor] = lambda output: output
    arguments: State = field(default_factory=dict)
    use_ema: bool | None = None
    image: int = 32

    def build(self) -> nn.Module:
        """Return the model with random weights and statistics, in float64."""
        model = randomise(self.model().double().eval())
        if getattr(model, "fixed", False):
            model.fix_positions()
        if isinstance(model, vits.Normalised):
            model.normalize.std.abs_().add_(0.1)  # must be positive
        return model

    def reference(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the model's own output."""
        with torch.no_grad():
            return self.output(model(images))


def add_prefix(prefix: str, state: State) -> State:
    """Return the state dict with a prefix before every key."""
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    """Return other weights of the same shapes, which must not be loaded."""
    return {key: value + 1 for key, value in state.items()}


def _moco_pretraining(state: State) -> State:
    trunk = {key: value for key, value in state.items() if not key.startswith("head.")}
    projector = add_prefix("head.", vits.moco_projector(24).double().state_dict())
    predictor = vits.moco_projector(4, depth=2).double().state_dict()
    inner = {
        **add_prefix("base_encoder.", {**trunk, **projector}),
        **add_prefix("momentum_encoder.", {**other(trunk), **projector}),
        **add_prefix("predictor.", predictor),
    }
    return {"epoch": 300, "arch": "vit_conv_base", "state_dict": add_prefix("module.", inner)}


def _moco_momentum(state: State) -> State:
    checkpoint = _moco_pretraining(state)
    swap = {"base_encoder": "momentum_encoder", "momentum_encoder": "base_encoder"}
    inner = {}
    for key, value in checkpoint["state_dict"].items():
        parts = key.split(".")
        inner[".".join([parts[0], swap.get(parts[1], parts[1]), *parts[2:]])] = value
    return {**checkpoint, "state_dict": inner}


def _pycls(raw: float, averaged: float) -> Callable[[State], State]:
    text = "VIT:\n  NUM_HEADS: 3\n  C_STEM_STRIDES: [2, 2, 2, 2, 1]\nLN:\n  EPS: 1.0e-05\n"

    def hold(state: State) -> State:
        chosen = {"model_state": state, "ema_state": other(state)}
        if averaged < raw:
            chosen = {"model_state": other(state), "ema_state": state}
        return {"epoch": 99, "test_err": raw, "ema_err": averaged, **chosen, "cfg": text}

    return hold


def _classy(state: State) -> State:
    model = vits.ClassyViT().double()
    model.load_state_dict(state)
    layers = [{"kernel": 3, "stride": 2, "out_channels": width} for width in (4, 8, 8, 16)]
    config = {"model": {"name": "vision_transformer", "num_heads": 3, "conv_stem_layers": layers}}
    return {"input_args": {"config": config}, "classy_state_dict": {"base_model": model.classy_state(), "phase_idx": 1}}


def whole_ecvit(state: State, kind: str = "ecdet") -> State:
    """Return the state dict of a detector, segmenter or pose model around a backbone's state dict."""
    around = {
        key: tensor
        for key, tensor in ecvits.whole(kind, ecvits.ECViT()).double().state_dict().items()
        if not key.startswith("backbone.backbone.")
    }
    return {**add_prefix("backbone.backbone.", state), **around}


def _ecvit_training(state: State) -> State:
    module = whole_ecvit(state, "ecpose")
    return {"last_epoch": 3, "model": other(module), "ema": {"module": module, "updates": 7}, "criterion": {}}


def _ecvit_adapter(state: State) -> State:
    projector = ecvits.conv_norm(8, 8).double().state_dict()
    return {**add_prefix("backbone.", state), **add_prefix("projector.0.", projector)}


def _torchvision() -> nn.Module:
    stem = [ConvStemConfig(width, 3, 2) for width in (4, 8, 8, 16)]
    return torchvision.models.VisionTransformer(32, 16, 2, 3, 24, 96, num_classes=5, conv_stem_configs=stem)


def _torchvision_training(state: State) -> State:
    average = {"n_averaged": torch.tensor(7), **add_prefix("module.", other(state))}
    return {"model": state, "model_ema": average, "epoch": 3, "args": argparse.Namespace(model="vit_b_16")}


def _torchvision_average(state: State) -> State:
    average = {"n_averaged": torch.tensor(7), **add_prefix("module.", state)}
    return {"model": other(state), "model_ema": average, "epoch": 3, "args": argparse.Namespace(model="vit_b_16")}


def _timm() -> nn.Module:
    return timm.create_model("vit_nano4_convstem", img_size=32, depth=2, num_classes=5)


def _timm_training(state: State) -> State:
    arguments = argparse.Namespace(model="vit_nano4_convstem", model_kwargs={}, mean=None, std=None)
    return {
        "epoch": 3,
        "arch": "vit_nano4_convstem",
        "state_dict": add_prefix("_orig_mod.module.", state),
        "state_dict_ema": other(state),
        "args": arguments,
    }


_SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 16}
_WIDE = {**_SMALL, "intermediate_size": 96}


def _vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**_WIDE, num_labels=5))


def _clip() -> nn.Module:
    return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**_WIDE, projection_dim=7))


def file_keys(model: nn.Module, folder: Any) -> State:
    """Return a transformers model's state dict with the keys in its file."""
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return dict(load_file(folder / "model.safetensors"))


HEADS = {"num_heads": 3}
STEM = {**HEADS, "stem_strides": (2, 2, 2, 2)}

RESTATED = (
    Case("moco_v3 fine-tuned", "moco_v3", lambda: vits.MocoViT(fixed=False),
         lambda s: {"state_dict": add_prefix("module.", s)}),
    Case("moco_v3 pre-training", "moco_v3", lambda: vits.MocoViT(classes=0), _moco_pretraining),
    Case("moco_v3 momentum", "moco_v3", lambda: vits.MocoViT(classes=0), _moco_momentum, use_ema=True),
    Case("moco_v3 to deit", "moco_v3", lambda: vits.MocoViT(classes=0), lambda s: {"model": s}),
    Case("pycls class token", "pycls", vits.PyclsViT, _pycls(20.0, 30.0)),
    Case("pycls averaged", "pycls", vits.PyclsViT, _pycls(30.0, 20.0)),
    Case("pycls pooled", "pycls", lambda: vits.PyclsViT(token=False), lambda s: s, STEM),
    Case("classyvision", "classyvision", vits.ClassyViT, _classy),
    Case("revisiting-at S", "robustbench", vits.robust,
         lambda s: {"model_state_dict": add_prefix("module.", s)}, HEADS),
    Case("revisiting-at M", "robustbench", lambda: vits.robust(medium=True),
         lambda s: add_prefix("module.base_model.", s), HEADS),
    Case("revisiting-at B", "robustbench", lambda: vits.robust(2, 48), lambda s: add_prefix("module.model.", s), HEADS),
    Case("edgecrafter backbone", "edgecrafter", ecvits.ECViT, lambda s: s),
    Case("edgecrafter detector", "edgecrafter", lambda: ecvits.ECViT(192, 2, 6), whole_ecvit),
    Case("edgecrafter segmenter", "edgecrafter", ecvits.ECViT, lambda s: {"model": whole_ecvit(s, "ecseg")}),
    Case("edgecrafter averaged", "edgecrafter", ecvits.ECViT, _ecvit_training, use_ema=True),
    Case("edgecrafter adapter, as lightly-train exports it", "edgecrafter", ecvits.ECViT, _ecvit_adapter),
    Case("robustbench S", "robustbench", lambda: vits.Normalised(vits.robust(), [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]),
         lambda s: s, HEADS),
)  # fmt: skip

REAL = (
    Case("torchvision", "torchvision", _torchvision, _torchvision_training, STEM),
    Case("torchvision averaged", "torchvision", _torchvision, _torchvision_average, STEM, use_ema=True),
    Case("timm train.py", "timm", _timm, _timm_training, HEADS),
    Case("transformers ViT", "transformers_vit", _vit, lambda s: s, HEADS, lambda o: o.logits),
    Case("transformers DINOv2", "transformers_dinov2",
         lambda: transformers.Dinov2Model(transformers.Dinov2Config(**_SMALL)), lambda s: s, HEADS,
         lambda o: o.pooler_output),
    Case("transformers DINOv2 gated", "transformers_dinov2",
         lambda: transformers.Dinov2Model(transformers.Dinov2Config(**_SMALL, use_swiglu_ffn=True)), lambda s: s, HEADS,
         lambda o: o.pooler_output),
    Case("transformers DINOv2 registers", "transformers_dinov2_registers",
         lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**_SMALL)), lambda s: s,
         HEADS, lambda o: o.pooler_output),
    Case("transformers CLIP", "transformers_clip", _clip, lambda s: s, HEADS, lambda o: o.image_embeds),
    Case("transformers SigLIP", "transformers_siglip",
         lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_WIDE)), lambda s: s, HEADS,
         lambda o: o.pooler_output),
)  # fmt: skip

CASES = RESTATED + REAL
TRANSFORMERS = tuple(case for case in REAL if case.layout.startswith("transformers"))
