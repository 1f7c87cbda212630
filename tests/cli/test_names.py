"""``convstem list``, ``show``, ``card`` and ``pull`` with every kind of name: our families, named trunks, by rule."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from click.testing import CliRunner
from huggingface_hub import ModelCard

import convstem
from convstem.cli import table
from convstem.cli.main import main
from convstem.cli.models import weights_lines
from convstem.registry import catalog
from convstem.registry.tables import families
from tests.support.assertions import randomise

RULE = "deit_tiny_patch16_224_convstem"

# A name, one of its tags, and the timm weights behind the tag.
KINDS = {
    "own family": ("vit_ti16_convstem", "augreg_in21k", "vit_tiny_patch16_224.augreg_in21k"),
    "named trunk": ("deit3_s16_convstem", "fb_in1k_384", "deit3_small_patch16_384.fb_in1k"),
    "by rule": (RULE, "fb_in1k", "deit_tiny_patch16_224.fb_in1k"),
}

kinds = pytest.mark.parametrize(("name", "tag", "source"), KINDS.values(), ids=KINDS)


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, result.output
    return result.output


def listed(*arguments: str) -> list[str]:
    return [info["name"] for info in json.loads(run("list", "--json", *arguments))]


def shown(name: str) -> Any:
    return json.loads(run("show", name, "--json"))


def test_by_default_our_families_come_first_and_names_by_rule_are_counted() -> None:
    header, _, *lines, empty, hint = run("list").splitlines()
    assert header.split() == ["name", "torchvision", "params", "(M)", "GMACs", "image", "weights"]
    assert [line.split()[0] for line in lines] == families() == convstem.list_models()
    assert lines[0].startswith("vit_ti16_convstem ")
    assert any(line.startswith("vitc_18gf ") and " 81.6 " in line and " 17.71 " in line for line in lines)
    more = len(catalog.architectures()) - len(families())
    assert (empty, hint) == ("", f"{more} more as <timm name>_convstem: convstem list --all, or a pattern")


def test_all_has_every_name_with_its_sizes() -> None:
    infos = json.loads(run("list", "--all", "--json"))
    assert [info["name"] for info in infos] == list(catalog.architectures())
    assert RULE not in families()
    assert all(info["num_params"] > 1e5 and info["macs"] > 1e6 for info in infos)
    lines = run("list", "--all").splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(catalog.architectures())


def test_a_bare_word_is_a_part_of_the_name() -> None:
    names = listed("dinov3")
    assert names == [name for name in catalog.architectures() if "dinov3" in name]
    assert {"vit_s16_dinov3_convstem", "vit_small_patch16_dinov3_convstem"} <= set(names)
    assert listed("vitc_*") == [name for name in catalog.models() if name.startswith("vitc_")]
    assert listed("vit_b_16_convstem") == ["vit_b16_convstem"]  # torchvision's name
    assert not [name for name in listed("*") if name.endswith("_pyramid")]
    assert listed("pyramid") == [f"{name}_pyramid" for name in families()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dinov4"], "no name matches 'dinov4'; did you mean .*vit_s16_dinov3_convstem"),
        (["zzzz"], "no name matches 'zzzz'; `convstem list --all` prints all names"),
        (["vit_b16_convstm*"], r"no name matches 'vit_b16_convstm\*'; did you mean .*vit_b16_convstem"),
        (
            ["--pretrained", "vitc_1gf"],
            "no name matching 'vitc_1gf' has pretrained weights; leave out --pretrained to see",
        ),
        (["--license", "mit", "vit_b16_conv"], "tag matching 'vit_b16_conv' has the licence mit; leave out --lic"),
        (["--license", "gpl"], "license must be one of apache-2.0, .*dinov3-license, .*permissive.*; got 'gpl'"),
    ],
)
def test_nothing_matches(arguments: list[str], message: str) -> None:
    error = run("list", *arguments, status=1)
    assert re.search(message, error), error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1


def test_pretrained_lists_tags() -> None:
    assert listed("--pretrained", "vit_ti16_convstem") == [
        f"vit_ti16_convstem.{tag}" for tag in ("augreg_in21k_ft_in1k", "augreg_in21k", "augreg_in21k_ft_in1k_384")
    ]
    assert listed("--pretrained", RULE) == [f"{RULE}.fb_in1k"]


def test_licences() -> None:
    every = {info["name"]: info["weights"][0]["license"] for info in json.loads(run("list", "--pretrained", "--json"))}
    assert {"apache-2.0", "cc-by-nc-4.0", "dinov3-license", "unknown"} <= set(every.values())
    assert listed("--license", "cc-by-nc-4.0") == [name for name, found in every.items() if found == "cc-by-nc-4.0"]
    permissive = listed("--license", "permissive")
    assert {every[name] for name in permissive} == {"apache-2.0", "mit"}
    assert permissive == [name for name, found in every.items() if found in ("apache-2.0", "mit")]
    with pytest.raises(convstem.ConvStemError, match="license must be one of"):
        convstem.list_models(license="gpl")


@pytest.mark.parametrize("name", catalog.models())
def test_show(name: str) -> None:
    text = run("show", name)
    spec = catalog.models()[name]
    info = json.loads(run("show", name, "--json"))
    assert f"params: {info['num_params']:,}" in text
    assert info["stem_channels"] == list(spec.stem.channels)
    assert spec.source in text


@kinds
def test_show_with_and_without_a_tag(name: str, tag: str, source: str) -> None:
    text = run("show", name)
    assert f"{name}.{tag} " in text
    assert "stem layer" in text
    alone = run("show", f"{name}.{tag}")
    assert f"Transplanted from timm's {source}: function preserved" in alone
    assert "preprocessing: bicubic, crop" in alone
    (entry,) = json.loads(run("show", f"{name}.{tag}", "--json"))["weights"]
    assert entry["license"] in alone
    assert entry["license"] == timm.get_pretrained_cfg(source).license
    tags = ", ".join(sorted(weights["name"].partition(".")[2] for weights in shown(name)["weights"]))
    assert run("show", f"{name}.nosuch", status=1) == f"Error: {name} has no pretrained tag 'nosuch'; it has {tags}\n"


def test_show_cites_the_accuracy_of_the_source() -> None:
    assert "acc@1 85.108 %, acc@5 97.53 % (source)" in run("show", "vit_b16_convstem")
    alone = run("show", "vit_b16_convstem.augreg2_in21k_ft_in1k")
    assert "metrics of the source: timm, results/results-imagenet.csv at commit " in alone


def test_show_knows_no_pyramid_names_that_timm_does_not() -> None:
    assert run("show", "vit_b16_convstem_pyramid") == run("show", "vit_b16_convstem")
    assert timm.is_model("vit_b16_convstem_pyramid")
    assert not timm.is_model(f"{RULE}_pyramid")
    assert f"timm.create_model('{RULE}', features_only=True, feature_cls='pyramid')" in run(
        "show", f"{RULE}_pyramid", status=1
    )


def test_weights_that_nobody_has() -> None:
    answer = run("card", "vitc_4gf", status=1)
    assert "vitc_4gf has no pretrained weights here: timm.create_model('vitc_4gf') builds it untrained, and" in answer


def test_show_leads_from_a_patchify_model_to_its_conv_stem_name() -> None:
    text = run("show", "vit_base_patch16_224")
    ours = "vit_b16_convstem (vit_base_patch16_224_convstem is the same)"
    assert text.startswith(f"vit_base_patch16_224 is a patchify model of timm; on a conv stem it is {ours}\n")
    assert text.partition("\n\n")[2] == run("show", "vit_b16_convstem")
    assert run("show", "vit_base_patch16_224.dino").partition("\n\n")[2] == run("show", "vit_b16_convstem.dino")
    name = "deit_tiny_patch16_224.fb_in1k"
    assert run("show", name).startswith(f"{name} is a patchify model of timm; on a conv stem it is {RULE}.fb_in1k\n")
    assert run("show", "vit_b16_convstm", status=1).startswith(
        "Error: unknown convstem model 'vit_b16_convstm'; did you"
    )


@kinds
def test_card_with_and_without_a_tag(name: str, tag: str, source: str) -> None:
    card = run("card", f"{name}.{tag}")
    assert ModelCard(card).data.base_model == f"timm/{source}"
    assert f'timm.create_model("{name}.{tag}", pretrained=True)' in card
    default = shown(name)["weights"][0]["name"]
    assert f'timm.create_model("{default}", pretrained=True)' in run("card", name)
    assert f"{name} has no pretrained tag 'nosuch'; it has" in run("card", f"{name}.nosuch", status=1)


@kinds
def test_pull_fetches_the_source_of_a_tag(name: str, tag: str, source: str, hub_file: Callable[..., None]) -> None:
    state = randomise(timm.create_model(source.split(".")[0], depth=1)).state_dict()
    hub_file(f"timm/{source}", state)
    snapshots = Path(os.environ["HF_HUB_CACHE"]) / f"models--timm--{source}" / "snapshots"
    (snapshot,) = snapshots.iterdir()
    (snapshot / "config.json").write_text("{}")
    assert run("pull", f"{name}.{tag}").strip() == str(snapshot)
    assert f"{name} has no pretrained tag 'nosuch'; it has" in run("pull", f"{name}.nosuch", status=1)


def test_a_word_that_no_name_holds_is_an_error_in_python_too() -> None:
    with pytest.raises(convstem.ConvStemError, match="no name matches 'dinov9'; did you mean .*dinov"):
        convstem.list_models("dinov9")
    with pytest.raises(convstem.ConvStemError, match="no name matching 'vitc_18gf' has pretrained weights"):
        convstem.list_models("vitc_18gf", pretrained=True)
    assert convstem.list_models("*dinov9*") == []
    assert convstem.list_models("dinov2")


def test_the_rule_below_a_tables_head_is_not_as_long_as_its_longest_line() -> None:
    rows = table([("a", "b"), ("c", "d" * 500)]).splitlines()
    assert len(rows[2]) > 500
    assert len(rows[1]) <= 120


@pytest.mark.parametrize(("size", "words"), [((3, 32, 32), "32"), ((3, 32, 64), "32x64")])
def test_the_images_of_weights_have_a_height_and_a_width(size: tuple[int, ...], words: str) -> None:
    (entry,) = json.loads(run("show", "vit_nano4_convstem.cifar10", "--json"))["weights"]
    row = weights_lines([{**entry, "input_size": size}])[0].splitlines()[-1]
    assert re.split(r"\s{2,}", row)[:2] == [entry["name"], words]


def test_help_has_a_short_name() -> None:
    assert run("-h") == run("--help")
