"""transformers and Lightning, unmodified, with the feature pyramid as their backbone."""

import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    DetrConfig,
    DetrForObjectDetection,
    TimmBackbone,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import convstem
from convstem.features import FeaturePyramid
from tests.support.versions import NEEDS_TRANSFORMERS_5, TRANSFORMERS_5

pytestmark = pytest.mark.full  # other people's libraries, whose imports alone take seconds

NAME = "vit_nano4_convstem"
PYRAMID: dict[str, Any] = {"feature_cls": "pyramid"}


def test_timm_backbone_takes_the_name_alone() -> None:
    config = TimmBackboneConfig(backbone=f"{NAME}_pyramid", out_indices=(0, 1, 2, 3))
    model = AutoBackbone.from_config(config).eval()
    assert isinstance(model._backbone, FeaturePyramid)
    assert model.channels == [64, 96, 96, 96]
    maps = model(torch.rand(1, 3, 32, 64)).feature_maps
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 32), (8, 16), (4, 8), (2, 4)]


def test_timm_backbone_takes_backbone_kwargs() -> None:
    def config() -> Any:
        return TimmBackboneConfig(backbone=NAME, out_indices=(0, 1))

    assert not isinstance(TimmBackbone(config())._backbone, FeaturePyramid)  # negative control
    model = TimmBackbone(config(), **PYRAMID)
    assert isinstance(model._backbone, FeaturePyramid)
    assert model.channels == [64, 96]


def test_upernet_trains() -> None:
    config = UperNetConfig(
        backbone_config=TimmBackboneConfig(backbone=f"{NAME}_pyramid", out_indices=(0, 1, 2, 3)),
        hidden_size=16,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        num_labels=3,
    )
    model = UperNetForSemanticSegmentation(config)
    out = model(torch.rand(2, 3, 32, 32), labels=torch.randint(3, (2, 32, 32)))
    assert out.logits.shape == (2, 3, 32, 32)
    out.loss.backward()
    assert gradient_of_the_stem(model) > 0


@pytest.mark.skipif(not TRANSFORMERS_5, reason=NEEDS_TRANSFORMERS_5)
def test_detr_trains() -> None:
    config = DetrConfig(
        backbone_config=TimmBackboneConfig(backbone=f"{NAME}_pyramid", out_indices=(0, 1, 2, 3)),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=4,
        num_labels=2,
    )
    model = DetrForObjectDetection(config)
    label = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    out = model(torch.rand(2, 3, 32, 32), labels=[label, label])
    assert out.pred_boxes.shape == (2, 4, 4)
    out.loss.backward()
    assert gradient_of_the_stem(model) > 0


def gradient_of_the_stem(model: nn.Module) -> float:
    (pyramid,) = [module for module in model.modules() if isinstance(module, FeaturePyramid)]
    gradient = next(pyramid.stem.parameters()).grad
    return 0.0 if gradient is None else float(gradient.abs().sum())


@pytest.mark.skipif(not TRANSFORMERS_5, reason=NEEDS_TRANSFORMERS_5)
@pytest.mark.filterwarnings("ignore:the BatchNorm of this checkpoint's stem was folded:UserWarning")
def test_pretrained_maps_survive_transformers_without_batchnorm() -> None:
    def backbone(**kwargs: Any) -> Any:
        config = TimmBackboneConfig(backbone=f"{NAME}_pyramid", out_indices=(0, 1))
        return TimmBackbone(config, pretrained=True, **kwargs).eval()

    x = torch.rand(1, 3, 32, 32)
    expected = timm.create_model(f"{NAME}_pyramid", features_only=True, pretrained=True, out_indices=(0, 1)).eval()(x)
    # Control: TimmBackbone resets the statistics of every BatchNorm in any timm model.
    assert not torch.allclose(backbone().forward(x).feature_maps[1], expected[1], atol=0.1)
    for actual, wanted in zip(backbone(stem_norm="none")(x).feature_maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-3)


def test_lightning_trains_with_a_frozen_stem(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own imports warn
        import lightning

    import segmentation_models_pytorch as smp

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net: Any = smp.FPN(f"tu-{NAME}_pyramid", encoder_weights=None)
            convstem.freeze_stem(self.net)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

    module = Module()
    stem = module.net.encoder.model.stem
    before, head = [t.clone() for t in stem.state_dict().values()], module.net.segmentation_head[0].weight.clone()
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about DataLoader workers and the like
        trainer.fit(module, torch.utils.data.DataLoader(torch.rand(4, 3, 32, 32), batch_size=2))
    assert not torch.equal(module.net.segmentation_head[0].weight, head)  # it has trained
    assert all(torch.equal(a, b) for a, b in zip(stem.state_dict().values(), before, strict=True))
    assert pytest.approx(2) == trainer.global_step
