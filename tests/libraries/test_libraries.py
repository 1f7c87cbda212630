"""Real other libraries on a transplanted stem; the plain ViT is the control in every test.

Each claim of docs/libraries.md is tested here.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.assertions import relative_error

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("default")]  # their own warnings are theirs

SMALL = {"img_size": 32, "depth": 2, "num_classes": 10}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", SMALL),
    "none": ("vit_ti16_convstem", SMALL),
    "batchnorm2d": ("vit_ti16_convstem", {**SMALL, "stem_norm": "batchnorm2d"}),
}
KEPT = ("plain", "none")


for package in ("accelerate", "fastai", "peft"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install .[libraries]")


def create(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    name, arguments = MODELS[kind]
    return timm.create_model(name, **arguments).eval()


def images(count: int = 8, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x)


def train(model: nn.Module, steps: int = 5) -> None:
    update = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for step in range(steps):
        update.zero_grad()
        nn.functional.cross_entropy(model(images() + step), torch.arange(8)).backward()
        update.step()


TARGETS = [["qkv"], ["qkv", "proj"], ["qkv", "proj", "fc1", "fc2"]]


def saved_adapter_error(kind: str, targets: list[str], folder: Path) -> float:
    """Return the error of a LoRA adapter that was trained, saved and loaded onto a fresh base model."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model = get_peft_model(create(kind), LoraConfig(target_modules=targets, r=4, init_lora_weights=False))
    train(model)
    expected = outputs(model, images())
    assert relative_error(outputs(create(kind), images()), expected) > 1e-3  # the adapter does something
    model.save_pretrained(folder)
    return relative_error(outputs(PeftModel.from_pretrained(create(kind), folder), images()), expected)


@pytest.mark.parametrize("targets", TARGETS, ids=",".join)
@pytest.mark.parametrize("kind", KEPT)
def test_a_lora_adapter_is_all_that_changed(kind: str, targets: list[str], tmp_path: Path) -> None:
    assert saved_adapter_error(kind, targets, tmp_path) < 1e-5


def test_a_lora_adapter_loses_what_batchnorm_learned(tmp_path: Path) -> None:
    assert saved_adapter_error("batchnorm2d", ["qkv"], tmp_path) > 1e-3


@pytest.mark.parametrize("kind", MODELS)
def test_accelerate_dispatches_and_offloads_to_disk(kind: str, tmp_path: Path) -> None:
    from accelerate import dispatch_model, init_empty_weights, load_checkpoint_and_dispatch

    model = create(kind)
    expected = outputs(model, images())
    assert relative_error(outputs(create(kind, seed=1), images()), expected) > 0.1
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    names = [*(name for name, _ in model.named_children()), "cls_token", "pos_embed"]
    whole = dispatch_model(create(kind), device_map=dict.fromkeys(names, "cpu"), force_hooks=True)
    assert relative_error(outputs(whole, images()), expected) < 1e-5
    places = {name: "disk" if name in ("patch_embed", "blocks") else "cpu" for name in names}
    with init_empty_weights():
        empty = create(kind)
    spread = load_checkpoint_and_dispatch(
        empty, str(tmp_path / "model.safetensors"), device_map=places, offload_folder=str(tmp_path / "offload")
    )
    assert relative_error(outputs(spread, images()), expected) < 1e-5


class Classifier(nn.Module):
    """A timm model with the interface of transformers' Trainer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.model = create(kind)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits} if labels is not None else {}


@pytest.mark.parametrize("kind", KEPT)
def test_transformers_trainer_saves_the_function(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import Trainer, TrainingArguments

    data = [{"pixel_values": x, "labels": label} for x, label in zip(images(), range(8), strict=True)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, max_steps=2, save_steps=2, per_device_train_batch_size=4, report_to=[],
        learning_rate=1e-3, disable_tqdm=True,
    )  # fmt: skip
    model = Classifier(kind)
    before = outputs(create(kind), images())
    Trainer(model=model, args=arguments, train_dataset=data).train()
    expected = outputs(model.model, images())
    assert relative_error(before, expected) > 1e-3
    again = Classifier(kind)
    again.load_state_dict(load_file(tmp_path / "checkpoint-2" / "model.safetensors"))
    assert relative_error(outputs(again.model, images()), expected) < 1e-5


def frozen_body_error(kind: str) -> float:
    """Return how far the frozen body's features move when fastai trains only the head."""
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import SGD

    model = create(kind)
    before = outputs(create(kind), images())
    features = model.forward_features(images()).detach()
    data = [(x, label) for x, label in zip(images(), torch.arange(8), strict=True)]
    loader: Any = torch.utils.data.DataLoader(data, batch_size=4)
    groups = [[p for n, p in model.named_parameters() if n.startswith("head") == head] for head in (False, True)]
    learner = Learner(
        DataLoaders(loader, loader),
        model,
        nn.CrossEntropyLoss(),
        opt_func=SGD,
        splitter=lambda _: groups,
        lr=0.1,
        train_bn=False,  # by default fastai trains a frozen body's LayerNorms and BatchNorms, also in the plain ViT
    )
    learner.freeze()
    with learner.no_logging():
        learner.fit(2)
    assert relative_error(outputs(model, images()), before) > 1e-3  # the head did learn
    with torch.no_grad():
        return relative_error(model.eval().forward_features(images()), features)


@pytest.mark.parametrize("kind", KEPT)
def test_fastais_frozen_body_stays(kind: str) -> None:
    assert frozen_body_error(kind) < 1e-5


def test_fastais_frozen_body_moves_with_batchnorm() -> None:
    assert frozen_body_error("batchnorm2d") > 1e-3


TAG = "augreg_in21k_ft_in1k"


def backbone_error(name: str, size: int, auto: bool) -> float:
    """Return the error of transformers' TimmBackbone against timm's own feature extractor.

    Args:
        name: timm name with tag.
        size: image size.
        auto: use ``AutoBackbone``.
    """
    from transformers import AutoBackbone, TimmBackbone

    x = images(2, size)
    (expected,) = timm.create_model(name, pretrained=True, features_only=True, out_indices=(-1,)).eval()(x)
    cls, further = (AutoBackbone, {"use_timm_backbone": True}) if auto else (TimmBackbone, {})
    backbone = cls.from_pretrained(name, out_indices=(-1,), **further).eval()
    with torch.no_grad():
        return relative_error(backbone(x).feature_maps[-1], expected)


@pytest.fixture
def no_such_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake the Hub, which AutoBackbone first asks whether a timm name is a repository; tests are offline."""
    from transformers.models.auto import auto_factory

    monkeypatch.setattr(auto_factory, "hf_api", lambda: SimpleNamespace(repo_exists=lambda name: False))


@pytest.mark.usefixtures("no_such_repository")
@pytest.mark.parametrize("auto", [False, True], ids=["TimmBackbone", "AutoBackbone"])
@pytest.mark.parametrize("name", [f"vit_tiny_patch16_224.{TAG}", f"vit_ti16_convstem.{TAG}"])
def test_transformers_backbones_keep_the_weights(name: str, auto: bool, hub_file: Any) -> None:
    torch.manual_seed(0)
    hub_file(f"timm/vit_tiny_patch16_224.{TAG}", timm.create_model("vit_tiny_patch16_224").state_dict())
    assert backbone_error(name, 224, auto) < 1e-5


@pytest.mark.usefixtures("no_such_repository")
@pytest.mark.parametrize("auto", [False, True], ids=["TimmBackbone", "AutoBackbone"])
def test_transformers_backbones_reset_batchnorm(auto: bool) -> None:
    assert backbone_error("vit_nano4_convstem.cifar10", 32, auto) > 0.1
