"""The registry: every row is valid, and the error for a wrong row says where and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from convstem.errors import RegistryError
from convstem.registry import catalog
from convstem.registry.catalog import check_torchvision_names
from convstem.registry.records import ModelSpec, WeightsSpec, macs, num_params
from convstem.registry.stem_spec import StemSpec
from convstem.registry.tables import make_rows, read_tables, rows

# Xiao et al., arXiv 2106.14881, table 2; counts recomputed from torchvision (PAPER.md section 1).
PAPER = {
    "vitc_1gf": (4_567_936, 1.1),
    "vitc_4gf": (17_754_136, 4.0),
    "vitc_18gf": (81_573_160, 17.7),
    "vitc_36gf": (167_796_008, 35.0),
}

ROW = {
    "patch_size": 16, "embed_dim": 192, "depth": 1, "num_heads": 3, "stem_channels": [8, 8, 8, 8], "source": "test",
}  # fmt: skip

WEIGHTS_ROW = {
    "license": "apache-2.0", "dataset": "d", "num_classes": 2, "input_size": [3, 32, 32], "mean": [0, 0, 0],
    "std": [1, 1, 1], "description": "d", "hf_hub_id": "org/name",
}  # fmt: skip


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
    path = tmp_path / "rows.json"
    path.write_text(text)
    return make_rows(path.name, read_tables(path), record)


def changed(row: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return a row with changed fields; None removes one."""
    return {key: value for key, value in {**row, **change}.items() if value is not None}


def test_a_good_row(tmp_path: Path) -> None:
    spec = read(tmp_path, json.dumps({"a": ROW}), ModelSpec)["a"]
    assert spec.stem == StemSpec((8, 8, 8, 8), (2, 2, 2, 2), (3, 3, 3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depht": 1}, r"rows.json: \[a\]: unknown field depht; the fields are .*depth"),
        ({"depth": None}, r"rows.json: \[a\]: missing field depth"),
        ({"patch_size": 32}, r"rows.json: \[a\]: the product of stem_strides must equal patch_size; \[2, 2, 2, 2\]"),
        ({"stem_channels": [8, 8, 0, 8]}, r"\[a\]: stem_channels must be .*positive integers; got \[8, 8, 0, 8\]"),
        ({"embed_dim": 100}, r"\[a\]: embed_dim must be a multiple of num_heads; got embed_dim 100, num_heads 3"),
        ({"img_size": 230}, r"\[a\]: img_size must be a multiple of the patch size 16; got 230x230"),
        ({"num_classes": -1}, r"\[a\]: num_classes must be 0 \(no head\) or more; got -1"),
        ({"stem_norm": "bn"}, "stem_norm must be one of batchnorm2d, frozen_bn, layernorm2d, none; got 'bn'"),
        ({"patch_size": [4, 4], "stem_channels": None}, r"\[a\]: .* a power of two .* got \(4, 4\)"),
        (
            {"torchvision": "x", "pos_embed": "sincos2d"},
            r"\[a\]: .* fixed position .* leave `torchvision` out",
        ),
        ({"depth": "one"}, r"\[a\]: depth must be a non-empty list of positive integers; got 'one'"),
    ],
)
def test_a_bad_architecture_names_file_and_row(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        read(tmp_path, json.dumps({"a": changed(ROW, change)}), ModelSpec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{{"a": {json.dumps(ROW)}, "a": {json.dumps(ROW)}}}', "rows.json: 'a' is given twice"),
        ("[1]", "rows.json: expected an object of entries by name; got list"),
        ("5", "rows.json: expected an object of entries by name; got int"),
        ('{"a": {"depth": 1, "depth": 2}}', "rows.json: 'depth' is given twice"),
        ('{"a": 3}', r"rows.json: \[a\]: expected a table of fields, got 3"),
        ('{"a": {"depth": one}}', "rows.json: Expecting value: line 1"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        read(tmp_path, text, ModelSpec)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("a.tag", {"license": None}, r"rows.json: \[a.tag\]: missing field license"),
        ("a.tag", {"license": ""}, r"\[a.tag\]: license must name a licence"),
        ("a.tag", {"hf_hub_id": None}, r"exactly one of file \(embedded\) and hf_hub_id"),
        ("a.tag", {"hf_hub_id": None, "file": "x"}, "an embedded file needs its sha256"),
        ("a", {}, "a weights entry is named architecture.tag; got 'a'"),
        ("a.tag", {"label_names": ["x"]}, "1 label_names for num_classes = 2"),
        ("a.tag", {"transform": "magic"}, "transform must be one of convert, none, transplant"),
    ],
)
def test_a_bad_weights_entry_names_file_and_row(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RegistryError, match=message):
        read(tmp_path, json.dumps({name: changed(WEIGHTS_ROW, change)}), WeightsSpec)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("vit_nano4_convstem.mine", ["weights"], None),  # negative control
        ("vit_nano5_convstem.mine", ["weights"], r"weights.json: \[vit_nano5_convstem.mine\]: .*vit_nano4_convstem"),
        ("vit_nano4_convstem.mine", ["weights", "timm_weights"], r"timm_weights.json: .*is taken by another file"),
    ],
)
def test_weights_are_of_an_architecture_and_in_one_file(
    monkeypatch: pytest.MonkeyPatch, name: str, files: list[str], message: str | None
) -> None:
    own = {file: {name: WEIGHTS_ROW} if file in files else {} for file in ("weights", "timm_weights")}
    monkeypatch.setattr(catalog, "rows", lambda file: own[file] if file in own else rows(file))  # keep other files
    weights = catalog.weights.__wrapped__
    if message is None:
        assert list(weights()) == [name]
        return
    with pytest.raises(RegistryError, match=message):
        weights()


def test_two_rows_with_one_torchvision_name(tmp_path: Path) -> None:
    row = changed(ROW, {"torchvision": "x"})
    specs = read(tmp_path, json.dumps({"a": row, "b": row}), ModelSpec)
    with pytest.raises(RegistryError, match=r"f.json: \[b\]: torchvision name 'x' is taken by \[a\]"):
        check_torchvision_names(specs, "f.json")


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
    near = catalog.nearest("vitc_19gf")  # the paper's names exist in both hosts
    assert len(near) == len({*near}) > 1
    assert catalog.find("ViT_B_16_convstem.some_tag").name == "vit_b16_convstem"


def test_a_repository_with_its_revision() -> None:
    def named(place: str) -> Any:
        row = {**WEIGHTS_ROW, "hf_hub_id": place}
        return WeightsSpec(name="a.tag", **row).hub_name

    assert (named("org/name"), named("org/name@v2")) == (("org/name", None), ("org/name", "v2"))


def test_five_near_names() -> None:
    assert len(catalog.nearest("vit_b16_convsten")) == 5
    assert catalog.nearest("nothing like it at all") == []
