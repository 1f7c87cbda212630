"""The registry: every row is right, and a wrong row says where and why."""

from pathlib import Path
from typing import Any

import pytest

from convstem.errors import RegistryError
from convstem.registry import catalog
from convstem.registry.catalog import check_torchvision_names
from convstem.registry.complexity import macs, num_params
from convstem.registry.records import ModelSpec, WeightsSpec
from convstem.registry.stem_spec import StemSpec
from convstem.registry.tables import read_rows

# Xiao et al., arXiv 2106.14881, table 2; counts recomputed from torchvision (PAPER.md section 1).
PAPER = {
    "vitc_1gf": (4_567_936, 1.1),
    "vitc_4gf": (17_754_136, 4.0),
    "vitc_18gf": (81_573_160, 17.7),
    "vitc_36gf": (167_796_008, 35.0),
}

ROW = """
[a]
patch_size = 16
embed_dim = 192
depth = 1
num_heads = 3
stem_channels = [8, 8, 8, 8]
source = "test"
"""

WEIGHTS_ROW = """
["a.tag"]
license = "apache-2.0"
dataset = "d"
num_classes = 2
input_size = [3, 32, 32]
mean = [0, 0, 0]
std = [1, 1, 1]
description = "d"
hf_hub_id = "org/name"
"""


@pytest.mark.parametrize("name", PAPER)
def test_paper_parameters_and_macs(name: str) -> None:
    spec = catalog.models()[name]
    params, gmacs = PAPER[name]
    assert num_params(spec) == params
    assert round(macs(spec) / 1e9, 1) == gmacs


def test_72gf_lands_at_72_gmacs() -> None:
    spec = catalog.models()["vitc_72gf"]
    assert num_params(spec) == 354_949_288
    assert abs(macs(spec) / 1e9 - 72) < 1


def read(tmp_path: Path, text: str, record: Any) -> Any:
    path = tmp_path / "rows.toml"
    path.write_text(text)
    return read_rows(path, record)


def test_a_good_row(tmp_path: Path) -> None:
    spec = read(tmp_path, ROW, ModelSpec)["a"]
    assert spec.stem == StemSpec((8, 8, 8, 8), (2, 2, 2, 2), (3, 3, 3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("depth", "depht"), r"rows.toml: \[a\]: unknown field depht; the fields are .*depth"),
        (("depth = 1", ""), r"rows.toml: \[a\]: missing field depth"),
        (
            ("= 16", "= 32"),
            r"rows.toml: \[a\]: the product of stem_strides must equal patch_size; \[2, 2, 2, 2\]",
        ),
        (
            ("[8, 8, 8, 8]", "[8, 8, 0, 8]"),
            r"\[a\]: stem_channels must be .*positive integers; got \[8, 8, 0, 8\]",
        ),
        (
            ("= 192", "= 100"),
            r"\[a\]: embed_dim must be a multiple of num_heads; got embed_dim 100, num_heads 3",
        ),
        (("source", "img_size = 230\nsource"), r"\[a\]: img_size must be a multiple of the patch size 16; got 230x230"),
        (
            ("source", 'stem_norm = "bn"\nsource'),
            r"stem_norm must be one of batchnorm2d, frozen_bn, layernorm2d, none; got 'bn'",
        ),
        (("[a]", '[b]\ntorchvision = "x"\n[a]\n[a]'), r"rows.toml: Cannot declare \('a',\) twice"),
        (("depth = 1", "depth = one"), r"rows.toml: Invalid value"),
    ],
)
def test_a_bad_architecture_names_file_and_row(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        read(tmp_path, ROW.replace(*change), ModelSpec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('license = "apache-2.0"', ""), r"rows.toml: \[a.tag\]: missing field license"),
        (("apache-2.0", ""), r"\[a.tag\]: license must name a licence"),
        (('hf_hub_id = "org/name"', ""), r"exactly one of file \(embedded\) and hf_hub_id"),
        (('hf_hub_id = "org/name"', 'file = "x"'), r"an embedded file needs its sha256"),
        (("a.tag", "a"), r"a weights entry is named architecture.tag; got 'a'"),
        (("description", 'label_names = ["x"]\ndescription'), r"1 label_names for num_classes = 2"),
        (("description", 'transform = "magic"\ndescription'), r"transform must be one of none, transplant"),
    ],
)
def test_a_bad_weights_entry_names_file_and_row(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        read(tmp_path, WEIGHTS_ROW.replace(*change), WeightsSpec)


def test_two_rows_with_one_torchvision_name(tmp_path: Path) -> None:
    row = ROW.replace("source", 'torchvision = "x"\nsource')
    specs = read(tmp_path, row + row.replace("[a]", "[b]"), ModelSpec)
    with pytest.raises(RegistryError, match=r"f.toml: \[b\]: torchvision name 'x' is taken by \[a\]"):
        check_torchvision_names(specs, "f.toml")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": ()}, "stem_channels must be a non-empty list"),
        ({"channels": "64"}, "stem_channels must be a non-empty list"),
        (
            {"channels": (8, 8), "strides": (2,)},
            r"as many strides and kernel sizes as channels; got 2 channels",
        ),
        (
            {"channels": (8,), "strides": (4,)},
            r"stride of at most \(k \+ 1\) / 2.*kernel size 3 with stride 4",
        ),
        ({"channels": (8,), "kernel_sizes": (4,)}, "odd kernel size"),
        ({"channels": (8,), "act": "tanh"}, "stem_act must be one of gelu, relu, silu; got 'tanh'"),
    ],
)
def test_a_bad_stem(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StemSpec(**fields)


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean .*vit_b16_convstem"):
        catalog.find("vit_b16_convstm")
    with pytest.raises(KeyError, match="convstem list"):
        catalog.find("resnet50")
    assert catalog.find("ViT_B_16_convstem.some_tag").name == "vit_b16_convstem"
