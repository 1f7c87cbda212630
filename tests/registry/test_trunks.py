"""timm architectures on a conv stem: as rows of registry/trunks.json, and by rule for everything else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

import convstem
from convstem.hosts.convstem_timm import trunk_cfgs
from convstem.publishing.derived import transplant_to_folder
from convstem.publishing.folder import finish
from convstem.publishing.push import stage
from convstem.publishing.verify import verify_folder
from convstem.registry import catalog
from convstem.registry.catalog import named_trunks, rule_trunks, transplanted_name
from convstem.registry.tables import families
from tests.support.assertions import largest_difference, randomise, relative_error
from tests.support.everyday import mostly_in_ci
from tests.support.processes import python

SMALL = {"depth": 1, "img_size": 64}


NAMED = [name for name in named_trunks() if "7b" not in name and "giant" not in name]


@pytest.mark.parametrize("name", mostly_in_ci(NAMED, ["beit_b16_convstem", "deit3_s16_convstem"]))
def test_every_named_trunk_builds(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **SMALL)
        assert model(torch.empty(1, 3, 64, 64)).shape[0] == 1
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).kernel_size == (3, 3)
    assert model.pretrained_cfg["architecture"] == name
    assert timm.get_pretrained_cfg(name).hf_hub_id.startswith("timm/")
    assert timm.get_pretrained_cfg(name).license


@pytest.mark.parametrize(
    ("name", "source"),
    mostly_in_ci(
        [
            ("vit_s16_dinov3_convstem", "vit_small_patch16_dinov3.lvd1689m"),
            ("deit3_s16_convstem", "deit3_small_patch16_224.fb_in22k_ft_in1k"),
            ("beit_b16_convstem", "beit_base_patch16_224.in22k_ft_in22k_in1k"),
            ("vit_b16_siglip_convstem.webli_256", "vit_base_patch16_siglip_256.webli"),
        ],
        ["vit_s16_dinov3_convstem"],
    ),
)
def test_pretrained_trunks_are_transplanted(name: str, source: str, hub_file: Callable[..., None]) -> None:
    arguments = {"depth": 1}
    plain = randomise(timm.create_model(source.split(".")[0], **arguments)).eval()
    hub_file(f"timm/{source}", plain.state_dict())
    if name == "deit3_s16_convstem":
        name += ".fb_in22k_ft_in1k"
    model = timm.create_model(name, pretrained=True, **arguments).eval()
    x = 0.9 * (2 * torch.rand(1, *plain.pretrained_cfg["input_size"]) - 1)
    with torch.no_grad():
        assert relative_error(timm.create_model(name, **arguments).eval()(x), plain(x)) > 1e-2  # negative control
        assert relative_error(model(x), plain(x)) < 5e-6


def test_arguments_stem_and_round_trip(tmp_path: Path) -> None:
    arguments = {**SMALL, "num_classes": 3, "in_chans": 1, "stem_channels": [16, 32, 64, 128], "stem_act": "gelu"}
    model = randomise(timm.create_model("vit_s16_dinov3_convstem", **arguments)).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "vit_s16_dinov3_convstem"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert largest_difference(again, model, torch.randn(1, 1, 64, 64)) == 0
    with pytest.raises(ValueError, match="must equal patch_size 16; .* reduce the image by 8"):
        timm.create_model("vit_s16_dinov3_convstem", stem_channels=[16, 32, 64], **SMALL)


@pytest.mark.parametrize(
    ("source", "name"),
    mostly_in_ci(
        [
            ("beit_base_patch16_384", "beit_b16_convstem"),
            ("deit3_small_patch16_384", "deit3_s16_convstem"),
            ("vit_base_patch16_siglip_256", "vit_b16_siglip_convstem"),
            ("vit_small_patch16_384", "vit_s16_convstem"),
            ("vit_small_patch16_dinov3", "vit_s16_dinov3_convstem"),
        ],
        ["vit_small_patch16_384"],
    ),
)
def test_a_transplant_is_saved_under_the_name_that_rebuilds_it(source: str, name: str, tmp_path: Path) -> None:
    model = convstem.transplant(randomise(timm.create_model(source, depth=1, num_classes=3)).eval())
    assert model.pretrained_cfg["architecture"] == name
    stage(model, tmp_path)
    failed = [check for check in verify_folder(tmp_path, source).checks if not check.ok]
    assert [check.name for check in failed] == ["license"]  # there is no card
    images = torch.randn(1, *model.pretrained_cfg["input_size"])
    fresh = timm.create_model(name, depth=1, num_classes=3, img_size=images.shape[-1]).eval()
    assert largest_difference(fresh, model, images) > 0  # negative control
    assert largest_difference(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(), model, images) == 0


def test_a_transplant_that_no_name_rebuilds_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was transplanted, but nothing was written: folders load by name"):
        transplant_to_folder("swin_tiny_patch4_window7_224", tmp_path / "swin", pretrained=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_all_sizes_of_a_name_are_one_architecture() -> None:
    rows = {*catalog.models(), *named_trunks()} - {"vit_7b16_dinov3_convstem"}  # slow to build
    sources = {spec.trunk: spec.img_size for spec in rule_trunks().values() if transplanted_name(spec.trunk) in rows}
    assert len(sources) > 60
    for source, size in sources.items():
        with torch.device("meta"):
            theirs = timm.create_model(source, depth=1)
            ours = timm.create_model(transplanted_name(source), depth=1, img_size=size, num_classes=theirs.num_classes)
        ours.patch_embed = theirs.patch_embed
        assert str(ours) == str(theirs).replace(type(theirs).__name__, type(ours).__name__, 1)


BY_RULE = """
import convstem, sys, timm
from convstem.publishing.folder import finish
from convstem.publishing.push import stage
from convstem.publishing.verify import verify_folder
from pathlib import Path
folder = Path(sys.argv[1])
"""


@pytest.mark.full
def test_a_transplant_on_a_trunk_by_rule_is_known_to_a_new_process(tmp_path: Path) -> None:
    make = "stage(convstem.transplant(timm.create_model('vit_relpos_small_patch16_224', depth=1)), folder)"
    python(BY_RULE + make, str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "vit_relpos_small_patch16_224_convstem"
    check = "assert [c.name for c in verify_folder(folder, 'x').checks if not c.ok] == ['license']"
    python(BY_RULE + check, str(tmp_path))
    python(BY_RULE + "assert len(convstem.load(folder).blocks) == 1", str(tmp_path))


def test_other_sizes_become_suffixes() -> None:
    tags = list(trunk_cfgs("vit_l16_siglip_convstem", "vit_large_patch16_siglip_256"))
    assert tags[-1].endswith("_384")  # not 512
    tags = list(trunk_cfgs("deit3_b16_convstem", "deit3_base_patch16_224"))
    assert "deit3_b16_convstem.fb_in1k" in tags
    assert "deit3_b16_convstem.fb_in1k_384" in tags
    assert not [tag for tag in tags if tag.endswith("_224")]
    tags = list(trunk_cfgs("deit3_base_patch16_224_convstem", "deit3_base_patch16_224"))
    assert not [tag for tag in tags if tag.endswith("_384")]  # the rule has a name for every size


def test_no_name_is_used_twice() -> None:
    assert not set(catalog.models()) & set(named_trunks())
    assert not {*catalog.models(), *named_trunks()} & set(rule_trunks())


def test_every_name_by_rule_exists_without_a_call() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_relpos_small_patch16_224_convstem", depth=1, img_size=64)
    assert model.patch_embed.backbone[0].conv.kernel_size == (3, 3)
    pyramids = [f"{name}_pyramid" for name in families()]
    assert set(timm.list_models(module="convstem_timm")) == {*catalog.architectures(), *pyramids}
    assert len(timm.list_models("*_convstem.*", pretrained=True)) > 300


@pytest.mark.full
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224_convstem", "vit_s16_dinov3_convstem"])
def test_a_saved_transplant_loads_in_a_fresh_process_without_convstem(name: str, tmp_path: Path) -> None:
    source = catalog.find(name).trunk
    model = convstem.transplant(randomise(timm.create_model(source, depth=1, img_size=64, num_classes=3)).eval())
    images = torch.rand(1, 3, 64, 64)
    torch.save((images, model(images).detach()), tmp_path / "expected.pt")
    assert model.pretrained_cfg["architecture"] == name
    stage(model, tmp_path)
    finish(tmp_path, "apache-2.0")
    code = """
    import sys, torch, timm
    images, expected = torch.load(sys.argv[1] + "/expected.pt")
    model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
    assert not torch.equal(timm.create_model("local-dir:" + sys.argv[1], pretrained=False).eval()(images), expected)
    assert torch.equal(model(images), expected)
    from transformers import AutoModelForImageClassification
    theirs = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
    assert torch.equal(theirs(pixel_values=images).logits, expected)
    """
    python(code, str(tmp_path))
