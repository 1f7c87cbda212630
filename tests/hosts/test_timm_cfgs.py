"""timm's cfgs are made from raw rows and equal those of the checked records."""

import inspect

import pytest
import timm

from convstem.registry import catalog

SHARED = ("hf_hub_id", "num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "license")


@pytest.mark.parametrize("name", catalog.weights())
def test_a_tags_cfg_is_its_record(name: str) -> None:
    entry, cfg = catalog.weights()[name], timm.get_pretrained_cfg(name)
    assert {field: getattr(cfg, field) for field in SHARED} == {field: getattr(entry, field) for field in SHARED}
    assert (cfg.label_names or (), cfg.description or "") == (entry.label_names, entry.description)
    assert bool(cfg.file) is bool(entry.file)
    assert cfg.first_conv == "patch_embed.backbone.0.conv"


def test_an_architectures_cfg_is_its_record() -> None:
    without = [spec for spec in catalog.models().values() if not catalog.weights_of(spec.name)]
    assert len(without) > 3
    for spec in without:
        cfg = timm.get_pretrained_cfg(spec.name)
        fields = (cfg.num_classes, cfg.input_size, cfg.mean, cfg.std, cfg.crop_pct)
        assert fields == (spec.num_classes, spec.input_size, spec.mean, spec.std, spec.crop_pct)
        assert not cfg.has_weights


@pytest.mark.parametrize("name", ["vit_nano4_convstem", "vit_nano4_convstem_pyramid"])
def test_an_entrypoint_that_is_called_by_itself_fetches_nothing(name: str) -> None:
    entrypoint = timm.model_entrypoint(name)
    assert (entrypoint.__name__, inspect.signature(entrypoint).parameters["pretrained"].default) == (name, False)
