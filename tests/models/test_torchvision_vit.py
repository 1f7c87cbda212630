"""Our models in torchvision: the checks of torchvision's own tests on every builder, and wrong calls."""

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torchvision.models import (
    ViT_B_16_Weights,
    Weights,
    WeightsEnum,
    get_model,
    get_model_builder,
    get_model_weights,
    get_weight,
    list_models,
)
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

import convstem
from convstem.errors import ArgumentError
from convstem.hosts import convstem_torchvision
from convstem.models.twins import as_timm_model, torchvision_twin
from convstem.registry import catalog
from convstem.registry.records import num_params
from tests.support.assertions import largest_difference
from tests.support.everyday import mostly_in_ci

NAMES = list(catalog.torchvision_names())
WITH_WEIGHTS = [n for n, timm_name in catalog.torchvision_names().items() if catalog.weights_of(timm_name)]
NANO = "vit_nano_4_convstem"


def test_names_are_listed() -> None:
    assert set(NAMES) <= set(list_models())
    assert set(NAMES) <= set(list_models(torchvision.models))  # as torchvision's own tests call it


def test_only_weights_of_imagenet_1k_have_figures_on_it() -> None:
    members = [weights for name in WITH_WEIGHTS for weights in get_model_weights(name)]
    data = {weights: catalog.weights()[weights.value.entry].dataset for weights in members}
    of_imagenet = {
        weights for weights in members if {"acc@1", "acc@5"} <= set(measured(weights).get("ImageNet-1K", ()))
    }
    assert of_imagenet == {weights for weights in members if data[weights] == "ImageNet-1k"}
    assert {data[weights] for weights in set(members) - of_imagenet} == {"CIFAR-10", "ImageNet-21k", "bamboo"}


def measured(weights: Any) -> dict[str, Any]:
    return dict(weights.meta["_metrics"])


@pytest.mark.parametrize("host", ["timm", "torchvision"])
def test_what_is_registered_can_be_pickled(host: str) -> None:
    convstem.register()  # a second call must not replace the functions
    names = {"timm": timm.list_models(module="convstem_timm"), "torchvision": NAMES}[host]
    find = {"timm": timm.models.model_entrypoint, "torchvision": get_model_builder}[host]
    assert [name for name in names if pickle.loads(pickle.dumps(find(name))) is not find(name)] == []


@pytest.mark.full
def test_a_builder_unpickles_in_a_fresh_process(tmp_path: Path) -> None:
    path = tmp_path / "builder"
    path.write_bytes(pickle.dumps(get_model_builder(NANO)))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))().__class__.__name__)"
    process = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert process.stdout == "VisionTransformer\n", process.stderr


@pytest.mark.parametrize("name", NAMES)
def test_builder_enum_and_model(name: str) -> None:
    builder, enum = get_model_builder(name), get_model_weights(name)
    assert get_model_builder(name.upper()) is builder
    assert builder.__name__ == name
    assert list(inspect.signature(builder).parameters) == ["weights", "progress", "kwargs"]
    assert issubclass(enum, WeightsEnum)
    assert getattr(torchvision.models, enum.__name__) is enum
    assert getattr(torchvision.models, name) is builder
    assert len(enum) == 0 or hasattr(enum, "DEFAULT")
    with torch.device("meta"):
        model = get_model(name)
    assert isinstance(model, VisionTransformer)
    spec = catalog.find(name)
    assert sum(p.numel() for p in model.parameters()) == num_params(spec)


PERMITTED = {"categories", "license", "_metrics", "min_size", "num_params", "recipe", "_docs", "_ops", "_file_size"}
"""Fields of a classifier's metadata, from torchvision's test_extended_models.py, test_schema_meta_validation."""

REQUIRED = PERMITTED - {"license"}


def schema_faults(meta: dict[str, Any]) -> list[str]:
    """Return what torchvision's own test would refuse, and fields that ImageNet classifiers lack."""
    faults = {f"not permitted: {field}" for field in meta.keys() - PERMITTED}
    faults |= {f"missing: {field}" for field in REQUIRED - meta.keys()}
    if len(meta["categories"]) == 1000:
        faults |= {f"missing: {k}" for k in ("acc@1", "acc@5") if k not in meta["_metrics"].get("ImageNet-1K", {})}
    return sorted(faults)


def test_the_schema_passes_torchvisions_own_weights() -> None:
    metas = [dict(weights.meta) for weights in ViT_B_16_Weights if len(weights.meta["categories"]) == 1000]
    assert len(metas) == 3
    assert [schema_faults(meta) for meta in metas] == [[], [], []]
    wrong = {**metas[0], "convstem": "x", "_metrics": {"ImageNet-1k": metas[0]["_metrics"]["ImageNet-1K"]}}
    assert schema_faults(wrong) == ["missing: acc@1", "missing: acc@5", "not permitted: convstem"]


@pytest.mark.parametrize("name", mostly_in_ci(WITH_WEIGHTS, [NANO, "vit_ti_16_convstem", "vit_s_8_convstem"]))
def test_metadata(name: str) -> None:
    enum, timm_name = get_model_weights(name), catalog.torchvision_names()[name]
    for weights in enum:
        assert schema_faults(weights.meta) == []
        assert weights.name.isupper()
        with torch.device("meta"):
            classes, image_size = len(weights.meta["categories"]), weights.meta["min_size"][0]
            model = get_model(name, num_classes=classes, image_size=image_size)
        assert weights.meta["num_params"] == sum(p.numel() for p in model.parameters())
        entry = catalog.weights()[f"{timm_name}.{weights.name.lower()}"]
        ((dataset, figures),) = weights.meta["_metrics"].items()
        assert figures == {**entry.metrics, **entry.source_metrics}
        assert dataset.lower() == entry.dataset.lower()
        assert get_weight(f"{enum.__name__}.{weights.name}") is weights
        assert copy.deepcopy(weights) is weights
        assert pickle.loads(pickle.dumps(weights)) is weights
        size = weights.meta["min_size"]
        assert weights.transforms()(torch.zeros(3, 40, 60, dtype=torch.uint8)).shape == (3, *size)


def test_metadata_of_known_weights() -> None:
    """Compare with public figures: timm's results, and the source file's size on the Hub."""
    weights = get_weight("ViT_B_16_ConvStem_Weights.DEFAULT")
    assert isinstance(weights.value, Weights)
    assert weights.meta["_metrics"] == {"ImageNet-1K": {"acc@1": 85.108, "acc@5": 97.53}}
    assert weights.meta["categories"] == ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]
    assert 330 < weights.meta["_file_size"] < 330.4
    nano = get_weight("ViT_Nano_4_ConvStem_Weights.CIFAR10")
    assert nano.meta["_file_size"] == round(Path(nano.url.removeprefix("file://")).stat().st_size / 1024 / 1024, 3)
    assert nano != weights
    assert nano.value != weights.value
    assert nano.value == copy.copy(nano.value)


def test_the_legacy_interface_still_works() -> None:
    with pytest.warns(UserWarning) as caught:
        model = get_model(NANO, pretrained=True).eval()
    assert any("The parameter 'pretrained' is deprecated" in str(w.message) for w in caught)
    x = torch.randn(1, 3, 32, 32)
    assert largest_difference(model, get_model(NANO, weights="DEFAULT"), x) == 0
    assert largest_difference(model, get_model(NANO), x) > 0.01
    with pytest.raises(ValueError, match="No weights available for model vitc_1gf"):
        get_model("vitc_1gf", pretrained=True)


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        (
            "vitc_1gf",
            {"weights": "DEFAULT"},
            ValueError,
            "ViTC_1GF_Weights has no weights 'DEFAULT'; it has: none yet",
        ),
        (
            NANO,
            {"weights": "IMAGENET1K_V1"},
            ValueError,
            "ViT_Nano_4_ConvStem_Weights has no weights .*CIFAR10, DEFAULT",
        ),
        (
            NANO,
            {"weights": "DEFAULT", "num_classes": 5},
            ValueError,
            "num_classes is 10 in the weights CIFAR10; got 5: leave it out",
        ),
        (
            NANO,
            {"image_size": 30},
            ValueError,
            "multiple of the patch size 4; got 30x30: use 28x28 or 32x32",
        ),
        (NANO, {"hidden_dim": 100}, ValueError, "hidden_dim 100|embed_dim 100, num_heads 3"),
        (NANO, {"conv_stem_configs": [ConvStemConfig(8, 3, 2)]}, ValueError, "patch_size; .2. multiply to 2"),
        (
            NANO,
            {"conv_stem_configs": "vit_s16_cvst"},
            ValueError,
            "build this model in timm|must equal patch_size",
        ),
        (NANO, {"bogus": 1}, TypeError, "bogus"),
    ],
)
def test_a_wrong_call_teaches(name: str, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get_model(name, **kwargs)


def test_another_enum_is_refused() -> None:
    with pytest.raises(TypeError, match="expected ViT_Nano_4_ConvStem_Weights but received ViT_B_16_Weights"):
        get_model(NANO, weights=torchvision.models.ViT_B_16_Weights.DEFAULT)


def test_a_plain_vit_checkpoint_is_named() -> None:
    plain = VisionTransformer(32, 8, 6, 3, 96, 192, num_classes=10)
    with pytest.raises(RuntimeError, match=r"checkpoint of a plain \(patchify\) ViT: it embeds 8x8 patches"):
        get_model(NANO).load_state_dict(plain.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match=r"source='timm', target='torchvision'"):
        state = get_model(NANO).state_dict()
        get_model(NANO).load_state_dict(convstem.convert(state, source="torchvision", target="timm"))


def test_another_stem_as_configs() -> None:
    model = get_model(NANO, conv_stem_configs=[ConvStemConfig(16, 3, 2), ConvStemConfig(24, 3, 2)])
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert [m.out_channels for m in model.conv_proj.modules() if isinstance(m, torch.nn.Conv2d)] == [
        16,
        24,
        96,
    ]


def test_models_copy_pickle_and_keep_their_hook() -> None:
    model = get_model(NANO).eval()
    x = torch.randn(1, 3, 32, 32)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert largest_difference(model, twin, x) == 0
        with pytest.raises(RuntimeError, match="plain"):
            twin.load_state_dict({"conv_proj.weight": torch.zeros(96, 3, 8, 8)}, strict=False)


def test_fx_and_script() -> None:
    model = get_model(NANO).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


def test_enum_names() -> None:
    assert convstem_torchvision.enum_name("vit_ti_16_convstem") == "ViT_Ti_16_ConvStem_Weights"
    assert convstem_torchvision.enum_name("vitc_18gf") == "ViTC_18GF_Weights"


def test_a_trunk_of_timm_has_a_twin() -> None:
    model = convstem.transplant(timm.create_model("vit_tiny_patch16_224", depth=1)).eval()
    assert largest_difference(torchvision_twin(model).eval(), model, torch.rand(1, 3, 224, 224)) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"act_layer": "relu"}, "this model has the activation ReLU"),
        ({"act_layer": "gelu_tanh"}, "this model has the activation GELUTanh"),
        ({"global_pool": "avg", "fc_norm": False}, "this model has global_pool='avg'"),
        ({"in_chans": 4}, "this model has in_chans=4"),
        ({"num_classes": 0}, "this model has num_classes=0"),
    ],
)
def test_what_a_twin_would_compute_otherwise_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        torchvision_twin(timm.create_model("vit_nano4_convstem", **arguments))


@pytest.mark.parametrize("heads", [torch.nn.Identity(), torch.nn.Linear(192, 3)])
def test_a_classifier_elsewhere(heads: torch.nn.Module) -> None:
    model = get_model(NANO)
    model.heads = heads
    with pytest.raises(ArgumentError, match="has its classifier at heads.head, a torch.nn.Linear; this one has"):
        as_timm_model(model)


def test_more_channels_come_home() -> None:
    plain = VisionTransformer(32, 16, 12, 3, 192, 768)
    model = convstem.transplant(plain, in_chans=5, bands=(3, 2, 1)).eval()
    assert largest_difference(as_timm_model(model).eval(), model, torch.rand(1, 5, 32, 32)) < 1e-5
